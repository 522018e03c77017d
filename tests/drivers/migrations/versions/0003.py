"""Step 3, which takes a while."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade():
    op.execute("ALTER TABLE steps ADD COLUMN extra_3 text")
    op.execute("INSERT INTO steps (step) VALUES (3)")
    op.execute("SELECT pg_sleep(0.2)")
