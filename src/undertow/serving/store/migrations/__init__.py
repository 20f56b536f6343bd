"""How the tables became what they are: steps that Alembic takes on databases of older versions."""
