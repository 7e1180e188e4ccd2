"""Roles of projects, scopes of tokens, passwords, what sign-ins and requests are counted by."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

UP = (
    "ALTER TABLE project_members ADD COLUMN administers boolean NOT NULL DEFAULT false",
    """
    ALTER TABLE keypairs
        ADD COLUMN requests_per_second double precision,
        ADD COLUMN previous_hash bytea,
        ADD COLUMN previous_until timestamptz,
        ADD COLUMN rotated_at timestamptz,
        ADD CONSTRAINT keypairs_requests_per_second_check CHECK (requests_per_second > 0),
        ADD CONSTRAINT keypairs_previous_check CHECK ((previous_hash IS NULL) = (previous_until IS NULL))
    """,
    # The tokens that there are stand for their keypairs, as they always did.
    """
    ALTER TABLE tokens
        ADD COLUMN scopes text[] NOT NULL DEFAULT '{admin,files,read,services,sessions}',
        ADD COLUMN kind text NOT NULL DEFAULT 'token',
        ADD CONSTRAINT tokens_kind_check CHECK (kind IN ('token', 'sign_in')),
        ADD CONSTRAINT tokens_scopes_check CHECK (
            scopes <@ '{admin,files,read,services,sessions}' AND 'read' = ANY (scopes))
    """,
    # A pass ends with the token that it was asked for with.
    """
    ALTER TABLE service_tickets ADD COLUMN token_id uuid
        CONSTRAINT service_tickets_token_id_fkey REFERENCES tokens (id) ON DELETE CASCADE
    """,
    "CREATE INDEX service_tickets_token_id_idx ON service_tickets (token_id)",
    """
    CREATE TABLE passwords (
        user_id uuid CONSTRAINT passwords_pkey PRIMARY KEY
            CONSTRAINT passwords_user_id_fkey REFERENCES users (id) ON DELETE CASCADE,
        hash text NOT NULL,
        set_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE sign_in_debts (
        key bytea CONSTRAINT sign_in_debts_pkey PRIMARY KEY,
        until_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX sign_in_debts_until_at_idx ON sign_in_debts (until_at)",
    # NULL: of the installation; else a domain's administrators keep it.
    """
    ALTER TABLE policies ADD COLUMN domain text CONSTRAINT policies_domain_fkey REFERENCES domains (name)
    """,
)
DOWN = (
    "ALTER TABLE policies DROP COLUMN domain",
    "DROP TABLE sign_in_debts",
    "DROP TABLE passwords",
    "ALTER TABLE service_tickets DROP COLUMN token_id",
    "ALTER TABLE tokens DROP COLUMN kind, DROP COLUMN scopes",
    """
    ALTER TABLE keypairs DROP COLUMN rotated_at, DROP COLUMN previous_until, DROP COLUMN previous_hash,
        DROP COLUMN requests_per_second
    """,
    "ALTER TABLE project_members DROP COLUMN administers",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    # A limited token would become one that may do everything, and an API token one that may sign in.
    op.execute("DELETE FROM tokens WHERE kind <> 'token' OR cardinality(scopes) < 5")
    for statement in DOWN:
        op.execute(statement)
