"""The plugins that ship with primeflowd. plugins.py loads them by name; nobody imports them."""
