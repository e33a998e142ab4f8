-- ledger.sql
--   The ledger: kavach.audit_log, one row per decision or usage record.
--
-- Append-only, for everyone.  Partitioned by UTC month; the parent carries no
-- primary key and no index, or else pg_restore fails ("multiple primary
-- keys"): each partition has its own (src/ledger/partition.c makes them), and is no
-- member of the extension, so that pg_dump dumps it as any table.

CREATE TABLE kavach.audit_log (
  id                 uuid NOT NULL,
  ts                 timestamptz NOT NULL,
  batch              bigint NOT NULL,
  kind               text NOT NULL CHECK (kind IN ('authorize', 'usage', 'adjustment')),
  agent_id           text NOT NULL,
  user_id            text,
  tenant_id          text,
  action             text,
  resource           text,
  arguments          jsonb,
  ip                 inet,
  result             text NOT NULL CHECK (result IN ('allowed', 'denied', 'rate_limited')),
  code               text NOT NULL,
  reason             text,
  permission_id      bigint,
  policy_id          text,
  tokens_requested   bigint,
  min_tokens         bigint,
  tokens_released    bigint,
  tokens_cost        bigint,
  settles            uuid,
  request_id         text,
  provider           text,
  model              text,
  tokens_input       bigint,
  tokens_output      bigint,
  tokens_cache_read  bigint,
  tokens_cache_write bigint,
  cost               numeric,
  metadata           jsonb
) PARTITION BY RANGE (ts);

COMMENT ON TABLE kavach.audit_log IS 'The ledger: one row per decision or usage record, append-only, partitioned by month. Reports read it as kavach.ledger.';
COMMENT ON COLUMN kavach.audit_log.id IS 'UUIDv7 (RFC 9562): sorts by time.';
COMMENT ON COLUMN kavach.audit_log.ts IS 'Clock time of the call: decides its windows and its month.';
COMMENT ON COLUMN kavach.audit_log.batch IS 'The batch that the row belongs to; 0 of rows from before there were any.';
COMMENT ON COLUMN kavach.audit_log.kind IS 'authorize, usage or adjustment.';
COMMENT ON COLUMN kavach.audit_log.agent_id IS 'Who called, as the caller named it.';
COMMENT ON COLUMN kavach.audit_log.user_id IS 'The agent''s owner at that time; NULL for an unknown agent.';
COMMENT ON COLUMN kavach.audit_log.tenant_id IS 'The agent''s tenant at that time.';
COMMENT ON COLUMN kavach.audit_log.action IS 'What was asked: the action.';
COMMENT ON COLUMN kavach.audit_log.resource IS 'What was asked: the resource.';
COMMENT ON COLUMN kavach.audit_log.arguments IS 'What was asked: the arguments, a JSON object.';
COMMENT ON COLUMN kavach.audit_log.ip IS 'Where the call came from, as the caller gave it.';
COMMENT ON COLUMN kavach.audit_log.result IS 'allowed, denied or rate_limited.';
COMMENT ON COLUMN kavach.audit_log.code IS 'Stable machine code of the outcome.';
COMMENT ON COLUMN kavach.audit_log.reason IS 'A sentence for people.';
COMMENT ON COLUMN kavach.audit_log.permission_id IS 'The permission that admitted the call; NULL when it was refused.';
COMMENT ON COLUMN kavach.audit_log.policy_id IS 'The budget that decided, if one did.';
COMMENT ON COLUMN kavach.audit_log.tokens_requested IS 'The caller''s argument tokens_cost: an estimate (authorize) or the actual figure (usage); NULL if it gave none.';
COMMENT ON COLUMN kavach.audit_log.min_tokens IS 'The caller''s argument min_tokens.';
COMMENT ON COLUMN kavach.audit_log.tokens_released IS 'On a settling row: the estimate that it replaces.';
COMMENT ON COLUMN kavach.audit_log.tokens_cost IS 'What this row charges. Every total is sum(tokens_cost): 0 when refused, NULL when admitted without a cost, negative for a refund.';
COMMENT ON COLUMN kavach.audit_log.settles IS 'On a usage row: the id of the authorization that it settles.';
COMMENT ON COLUMN kavach.audit_log.request_id IS 'The caller''s key for this call.';
COMMENT ON COLUMN kavach.audit_log.provider IS 'Who served the call, when known.';
COMMENT ON COLUMN kavach.audit_log.model IS 'The model that served it, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_input IS 'Input tokens, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_output IS 'Output tokens, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_cache_read IS 'Tokens read from a cache, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_cache_write IS 'Tokens written to a cache, when known.';
COMMENT ON COLUMN kavach.audit_log.cost IS 'Its price, when known.';
COMMENT ON COLUMN kavach.audit_log.metadata IS 'The application''s own notes, a JSON object.';

CREATE FUNCTION kavach.charged_at(ts timestamptz, tokens_cost bigint, settles uuid)
RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN settles IS NOT NULL AND tokens_cost < 0 THEN least(ts, kavach.uuid7_ts(settles)) ELSE ts END;

COMMENT ON FUNCTION kavach.charged_at(timestamptz, bigint, uuid) IS
  'The time in whose windows a ledger row counts against limits: its ts, but what a settlement gives back counts in those of the authorization that it settles. Bills and reports go by ts.';

CREATE FUNCTION kavach.refuse_change()
RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'kavach_refuse_change';

COMMENT ON FUNCTION kavach.refuse_change() IS
  'Trigger: the ledger is append-only. Error 42501, for the owner as well.';

-- Row triggers, which the partitions inherit, as logical replication fires no
-- statement triggers; those on TRUNCATE are not inherited, so that src/ledger/partition.c
-- gives each partition its own.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON kavach.audit_log
  FOR EACH ROW EXECUTE FUNCTION kavach.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON kavach.audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION kavach.refuse_change();
ALTER TABLE kavach.audit_log ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE kavach.audit_log ENABLE ALWAYS TRIGGER append_only_truncate;
COMMENT ON TRIGGER append_only ON kavach.audit_log IS 'No row is changed or removed, by the owner neither.';
COMMENT ON TRIGGER append_only_truncate ON kavach.audit_log IS 'Nor are all of them.';

CREATE FUNCTION kavach.guard_ledger()
RETURNS event_trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'kavach_guard_ledger';

COMMENT ON FUNCTION kavach.guard_ledger() IS
  'Event trigger: the ledger''s tables are not dropped or detached while it holds rows, and what kavach has made is not altered so that a dump lacks it. Error 42501, unless kavach.allow_drop or kavach.allow_alter is on.';

-- Whatever may drop the ledger, by CASCADE too, or alter what kavach has made: src/ledger/guard.c has how.
CREATE EVENT TRIGGER kavach_guard_ledger ON ddl_command_start
  WHEN TAG IN ('ALTER EXTENSION', 'ALTER FUNCTION', 'ALTER INDEX', 'ALTER POLICY', 'ALTER ROUTINE', 'ALTER RULE',
               'ALTER SCHEMA', 'ALTER SEQUENCE', 'ALTER TABLE', 'ALTER TRIGGER', 'ALTER VIEW',
               'CREATE INDEX', 'CREATE POLICY', 'CREATE RULE', 'CREATE STATISTICS', 'CREATE TRIGGER',
               'DROP ACCESS METHOD', 'DROP COLLATION', 'DROP DOMAIN', 'DROP EXTENSION',
               'DROP FOREIGN DATA WRAPPER', 'DROP FOREIGN TABLE', 'DROP FUNCTION', 'DROP INDEX', 'DROP LANGUAGE',
               'DROP MATERIALIZED VIEW', 'DROP OWNED', 'DROP ROUTINE', 'DROP SCHEMA', 'DROP SEQUENCE', 'DROP SERVER',
               'DROP TABLE', 'DROP TRIGGER', 'DROP TYPE', 'DROP VIEW')
  EXECUTE FUNCTION kavach.guard_ledger();
ALTER EVENT TRIGGER kavach_guard_ledger ENABLE ALWAYS;

COMMENT ON EVENT TRIGGER kavach_guard_ledger IS 'Keeps the ledger''s tables from being dropped or detached while it holds rows, and what kavach has made as a dump has it.';

CREATE FUNCTION @extschema@.kavach_create_months(first date, last date)
RETURNS int
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_create_months';

COMMENT ON FUNCTION @extschema@.kavach_create_months(date, date) IS
'Makes the partitions of the ledger''s UTC months from that of one date to that of another, as far as they are missing, and returns how many. Calls make their own; needed before rows come by logical replication, or are put in by hand.
first, last: any day of the first and of the last month, at most 240 months.
Errors: 22004 NULL; 22008 before 1970 or after 9999; 22023 first after last; 54000 too many; 42P17 where a partition of other bounds is in a month; 25006 read-only.';

CREATE VIEW kavach.ledger AS
SELECT * FROM kavach.audit_log;

COMMENT ON VIEW kavach.ledger IS 'kavach.audit_log as reports read it: with the owner''s rights.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT a.attrelid::regclass AS view, a.attname, col_description('kavach.audit_log'::regclass, b.attnum) AS text
      FROM pg_attribute a
      JOIN pg_attribute b ON b.attrelid = 'kavach.audit_log'::regclass AND b.attname = a.attname
     WHERE a.attrelid = 'kavach.ledger'::regclass AND a.attnum > 0
  LOOP
    EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', c.view, c.attname, c.text);
  END LOOP;
END
$$;
