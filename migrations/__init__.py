"""How the schema came to be: Alembic revisions, each of which goes down again."""
