"""For tests of primeflowd and of its plugins: public, and kept compatible like the hooks."""
