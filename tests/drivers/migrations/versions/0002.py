"""Step 2, which takes a while."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.execute("ALTER TABLE steps ADD COLUMN extra_2 text")
    op.execute("INSERT INTO steps (step) VALUES (2)")
    op.execute("SELECT pg_sleep(0.2)")
