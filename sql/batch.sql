-- batch.sql
--   Batches: stretches of the ledger that are closed, and what they add up to.
--
-- Reports and counters read the sums here, and the rows of kavach.tail's batches,
-- in one snapshot: src/ledger/batch.c has why no row is missed or counted twice.
-- Only closing writes these tables (src/ledger/rollup.c).  A dump has them, as it
-- has the ledger; where there is no row in kavach.tail, nothing is in them yet.

CREATE SEQUENCE kavach.batch_number;

SELECT pg_catalog.pg_extension_config_dump('kavach.batch_number', '');

COMMENT ON SEQUENCE kavach.batch_number IS 'Numbers of batches; gaps mean nothing.';

CREATE FUNCTION kavach.current_batch()
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_current_batch';

COMMENT ON FUNCTION kavach.current_batch() IS
  'The number of the batch that is open now, which stays open until this (sub)transaction ends. The default of kavach.audit_log.batch: rows that are put in by hand register as calls do.';

ALTER TABLE kavach.audit_log ALTER batch SET DEFAULT kavach.current_batch();

CREATE TABLE kavach.tail (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  high bigint NOT NULL,
  open bigint[] NOT NULL
);

SELECT pg_catalog.pg_extension_config_dump('kavach.tail', '');

COMMENT ON TABLE kavach.tail IS 'One row: which batches are not in the rollups yet. Without it, none is.';
COMMENT ON COLUMN kavach.tail.singleton IS 'There is one row only.';
COMMENT ON COLUMN kavach.tail.high IS 'No batch beyond this one is in the rollups.';
COMMENT ON COLUMN kavach.tail.open IS 'Nor are these, before it.';

CREATE TABLE kavach.batch (
  batch       bigint NOT NULL,
  month       date NOT NULL,
  rows        bigint NOT NULL,
  calls       bigint NOT NULL,
  tokens_cost numeric NOT NULL,
  first_ts    timestamptz NOT NULL,
  last_ts     timestamptz NOT NULL,
  closed_at   timestamptz NOT NULL,
  seal_no     bigint NOT NULL UNIQUE,
  seal        bytea,
  PRIMARY KEY (batch, month)
);

SELECT pg_catalog.pg_extension_config_dump('kavach.batch', '');

COMMENT ON TABLE kavach.batch IS 'Closed batches, a row for each month that they have rows in.';
COMMENT ON COLUMN kavach.batch.batch IS 'The number that its rows in kavach.audit_log have.';
COMMENT ON COLUMN kavach.batch.month IS 'The UTC month of the rows, its first day.';
COMMENT ON COLUMN kavach.batch.rows IS 'How many rows there are.';
COMMENT ON COLUMN kavach.batch.calls IS 'How many of them are authorize decisions.';
COMMENT ON COLUMN kavach.batch.tokens_cost IS 'sum(tokens_cost) over them.';
COMMENT ON COLUMN kavach.batch.first_ts IS 'The ts of the earliest.';
COMMENT ON COLUMN kavach.batch.last_ts IS 'The ts of the latest.';
COMMENT ON COLUMN kavach.batch.closed_at IS 'When it was closed.';
COMMENT ON COLUMN kavach.batch.seal_no IS 'The order of closing, without gaps: who has seen one has seen all before it.';
COMMENT ON COLUMN kavach.batch.seal IS 'Reserved.';

-- NULLs are alike: of an unknown agent, a user without tenant, a call whose model is not known.

CREATE TABLE kavach.usage_daily (
  day                date NOT NULL,
  tenant_id          text,
  user_id            text,
  agent_id           text,
  provider           text,
  model              text,
  calls              bigint NOT NULL,
  denied             bigint NOT NULL,
  calls_without_cost bigint NOT NULL,
  tokens_cost        numeric NOT NULL,
  tokens_input       numeric NOT NULL,
  tokens_output      numeric NOT NULL,
  tokens_cache_read  numeric NOT NULL,
  tokens_cache_write numeric NOT NULL,
  cost               numeric NOT NULL,
  UNIQUE NULLS NOT DISTINCT (agent_id, day, user_id, tenant_id, provider, model)
) WITH (fillfactor = 70);

CREATE TABLE kavach.usage_monthly (
  month              date NOT NULL,
  tenant_id          text,
  user_id            text,
  agent_id           text,
  provider           text,
  model              text,
  calls              bigint NOT NULL,
  denied             bigint NOT NULL,
  calls_without_cost bigint NOT NULL,
  tokens_cost        numeric NOT NULL,
  tokens_input       numeric NOT NULL,
  tokens_output      numeric NOT NULL,
  tokens_cache_read  numeric NOT NULL,
  tokens_cache_write numeric NOT NULL,
  cost               numeric NOT NULL,
  UNIQUE NULLS NOT DISTINCT (agent_id, month, user_id, tenant_id, provider, model)
) WITH (fillfactor = 70);

CREATE TABLE kavach.usage_total (
  day                date PRIMARY KEY,
  calls              bigint NOT NULL,
  denied             bigint NOT NULL,
  calls_without_cost bigint NOT NULL,
  tokens_cost        numeric NOT NULL,
  tokens_input       numeric NOT NULL,
  tokens_output      numeric NOT NULL,
  tokens_cache_read  numeric NOT NULL,
  tokens_cache_write numeric NOT NULL,
  cost               numeric NOT NULL
) WITH (fillfactor = 70);

CREATE INDEX usage_daily_day_idx ON kavach.usage_daily (day);
CREATE INDEX usage_daily_user_id_day_idx ON kavach.usage_daily (user_id, day);
CREATE INDEX usage_daily_tenant_id_day_idx ON kavach.usage_daily (tenant_id, day);
CREATE INDEX usage_monthly_month_idx ON kavach.usage_monthly (month);

SELECT pg_catalog.pg_extension_config_dump('kavach.usage_daily', '');
SELECT pg_catalog.pg_extension_config_dump('kavach.usage_monthly', '');
SELECT pg_catalog.pg_extension_config_dump('kavach.usage_total', '');

COMMENT ON TABLE kavach.usage_daily IS 'What closed batches add up to, by UTC day.';
COMMENT ON TABLE kavach.usage_monthly IS 'What closed batches add up to, by UTC month.';
COMMENT ON TABLE kavach.usage_total IS 'What closed batches add up to, by UTC day, all agents together.';
COMMENT ON COLUMN kavach.usage_daily.day IS 'The UTC day of the rows.';
COMMENT ON COLUMN kavach.usage_monthly.month IS 'The UTC month of the rows, its first day.';
COMMENT ON COLUMN kavach.usage_total.day IS 'The UTC day of the rows.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT t.name AS relation, v.name, v.text
      FROM (VALUES ('usage_daily'), ('usage_monthly'), ('usage_total')) AS t (name),
           (VALUES ('tenant_id', 'The agent''s tenant at that time.'),
                   ('user_id', 'The agent''s owner at that time; NULL for unknown agents.'),
                   ('agent_id', 'Who called; NULL for unknown agents, all of them.'),
                   ('provider', 'Who served the calls; NULL: not known, or not settled.'),
                   ('model', 'The model that served them; NULL: not known, or not settled.'),
                   ('calls', 'Authorize decisions.'),
                   ('denied', 'Those refused.'),
                   ('calls_without_cost', 'Those admitted that gave no cost.'),
                   ('tokens_cost', 'sum(tokens_cost) over the rows. What a settlement replaces was charged without a model.'),
                   ('tokens_input', 'Input tokens, as far as known.'),
                   ('tokens_output', 'Output tokens, as far as known.'),
                   ('tokens_cache_read', 'Tokens read from a cache, as far as known.'),
                   ('tokens_cache_write', 'Tokens written to a cache, as far as known.'),
                   ('cost', 'The price of it, as far as known.')) AS v (name, text)
     WHERE EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = ('kavach.' || t.name)::regclass AND a.attname = v.name)
  LOOP
    EXECUTE format('COMMENT ON COLUMN kavach.%I.%I IS %L', c.relation, c.name, c.text);
  END LOOP;
END
$$;

CREATE TABLE kavach.usage_scope (
  scope   text NOT NULL,
  subject text NOT NULL,
  period  text NOT NULL,
  start   timestamptz NOT NULL,
  tokens  numeric NOT NULL,
  calls   bigint NOT NULL,
  PRIMARY KEY (scope, subject, period, start)
) WITH (fillfactor = 70);

-- the subjects that have a window
CREATE INDEX usage_scope_window_idx ON kavach.usage_scope (scope, period, start);

SELECT pg_catalog.pg_extension_config_dump('kavach.usage_scope', '');

COMMENT ON TABLE kavach.usage_scope IS 'What closed batches add up to in the windows of limits: what counters are loaded from.';
COMMENT ON COLUMN kavach.usage_scope.scope IS 'Whose usage it is: as in kavach.budget_policy.';
COMMENT ON COLUMN kavach.usage_scope.subject IS 'The id of whose usage it is; empty for all agents.';
COMMENT ON COLUMN kavach.usage_scope.period IS 'The kind of window: as in kavach.budget_limit.';
COMMENT ON COLUMN kavach.usage_scope.start IS 'Start of the window (UTC); -infinity for total. Hours of agents are kept for two days.';
COMMENT ON COLUMN kavach.usage_scope.tokens IS 'Tokens charged in it, where a settlement gives back in the window of what it settles (kavach.charged_at).';
COMMENT ON COLUMN kavach.usage_scope.calls IS 'Calls admitted in it.';

CREATE TABLE kavach.open_authorization (
  id uuid PRIMARY KEY
);

SELECT pg_catalog.pg_extension_config_dump('kavach.open_authorization', '');

COMMENT ON TABLE kavach.open_authorization IS 'Among which authorizations of closed batches those are that nobody has settled: kavach.unsettled looks at these.';
COMMENT ON COLUMN kavach.open_authorization.id IS 'The id of the authorization.';

CREATE FUNCTION kavach.close_batches()
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_close_batches';

COMMENT ON FUNCTION kavach.close_batches() IS
'Opens the next batch and closes those before that no transaction can add to any more; returns how many rows these have. The worker does that all the time; to be seen at once.
Errors: 25006 read-only.';

CREATE FUNCTION kavach.wake_worker()
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_wake_worker';

COMMENT ON FUNCTION kavach.wake_worker() IS
'Has the worker of this database look at once at all that it does, or has it started: true if it is there already, false if it is yet to come.
Errors: 25006 read-only.';

CREATE FUNCTION kavach.read_worker(
  OUT pid int, OUT closed_at timestamptz, OUT failing_since timestamptz, OUT sqlstate text, OUT refused_at timestamptz)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_worker_status';

COMMENT ON FUNCTION kavach.read_worker() IS
  'The row of kavach.worker_status.';

CREATE VIEW kavach.worker_status AS
SELECT * FROM kavach.read_worker();

COMMENT ON VIEW kavach.worker_status IS 'The background worker of this database: it is there from the first call on, as long as batches are open. What it does now is in pg_stat_activity.';
COMMENT ON COLUMN kavach.worker_status.pid IS 'Its process; NULL: there is none.';
COMMENT ON COLUMN kavach.worker_status.closed_at IS 'When one closed batches last, since the start of the server.';
COMMENT ON COLUMN kavach.worker_status.failing_since IS 'Since when something fails, which the log tells of; NULL: nothing does.';
COMMENT ON COLUMN kavach.worker_status.sqlstate IS 'With what.';
COMMENT ON COLUMN kavach.worker_status.refused_at IS 'When the log was last told that there was no background worker to be had (max_worker_processes).';

-- With the owner's rights, as xact_start is not shown to everybody.  5 is LOCK_BATCH of src/server/lock.h.
CREATE FUNCTION kavach.batch_holders(OUT batch bigint, OUT pid int, OUT role name, OUT application_name text, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT (l.classid::bigint << 32) | l.objid::bigint, l.pid, a.usename, a.application_name, a.xact_start
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
   WHERE l.locktype = 'userlock' AND l.objsubid = 5 AND l.granted
     AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
END;

COMMENT ON FUNCTION kavach.batch_holders() IS
  'Who keeps which batch open, until his transaction ends: the holders of kavach.batch_status.';

CREATE VIEW kavach.batch_status AS
WITH written AS (
  SELECT a.batch, count(*) AS rows, min(a.ts) AS first_ts
    FROM kavach.audit_log a
   WHERE a.batch = ANY (ARRAY(SELECT unnest(t.open) FROM kavach.tail t))
      OR a.batch > coalesce((SELECT t.high FROM kavach.tail t), -1)
   GROUP BY a.batch
)
SELECT coalesce(w.batch, h.batch) AS batch, coalesce(w.rows, 0) AS rows, w.first_ts,
       h.pid, h.role, h.application_name, h.since
  FROM written w
  FULL JOIN kavach.batch_holders() h ON h.batch = w.batch;

COMMENT ON VIEW kavach.batch_status IS 'The batches that are open: their rows are in the ledger, and in no rollup yet. A row for each transaction that keeps one open; a batch that nobody keeps open is about to be closed.';
COMMENT ON COLUMN kavach.batch_status.batch IS 'Its number.';
COMMENT ON COLUMN kavach.batch_status.rows IS 'How many rows it has that are committed.';
COMMENT ON COLUMN kavach.batch_status.first_ts IS 'The ts of the earliest of these.';
COMMENT ON COLUMN kavach.batch_status.pid IS 'Who keeps it open: the process; NULL: nobody.';
COMMENT ON COLUMN kavach.batch_status.role IS 'Its role.';
COMMENT ON COLUMN kavach.batch_status.application_name IS 'What it calls itself.';
COMMENT ON COLUMN kavach.batch_status.since IS 'Since when: the start of its transaction.';
