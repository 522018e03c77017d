"""Migrations under a session's advisory lock, as services run them that start several instances at once."""

import os
from logging.config import fileConfig

from alembic import context
from sqlalchemy import create_engine, pool, text

LOCK = 4711

fileConfig(context.config.config_file_name)
engine = create_engine(os.environ["MIGRATIONS_DSN"], poolclass=pool.NullPool)

with engine.connect() as connection:
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
    # The lock outlives this transaction.
    connection.commit()
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
    connection.commit()
