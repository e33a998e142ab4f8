-- describe.sql: the extension as psql describes it.
\a
\pset footer off
\dx kavach
\dx+ kavach
\df kavach_*
\d kavach.ledger
\d kavach.agent
\d kavach.permission
\d kavach.budget_policy
\d kavach.budget_limit
\d kavach.budget_baseline
\d kavach.budget_status
