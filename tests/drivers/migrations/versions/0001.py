"""Step 1, which takes a while."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.execute("CREATE TABLE steps (step int PRIMARY KEY)")
    op.execute("INSERT INTO steps (step) VALUES (1)")
    op.execute("SELECT pg_sleep(0.2)")
