"""The OpenAPI document of the API, and the page that is made of it.

    routes.ROUTES   which methods, paths and scopes there are
    *_operations    what each takes and answers; json_schema makes schemas of those types,
                    and body_rules adds what handlers check beyond them
    document        all of it together
    page            the same for people

tests/api/test_openapi.py compares every answer of the API's tests with it, and
tests/acceptance/test_openapi.py has a daemon tried by it.
"""
