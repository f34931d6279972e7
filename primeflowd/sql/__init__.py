"""Tables, statements, migrations and group commit: what every storage over SQLAlchemy shares."""
