-- retention.sql
--   Months that the ledger has no more: kavach.retention, and by hand.
--
-- Workers take them out (src/ledger/takeout.c has how), since no function can.
-- What is gone stays in the rollups; who asks for its rows is told so.

CREATE TABLE kavach.dropped_month (
  month         date PRIMARY KEY,
  kind          text NOT NULL CHECK (kind IN ('dropped', 'archived')),
  dropped_at    timestamptz NOT NULL,
  dropped_by    text,
  relation      text,
  schema        text,
  rows          bigint NOT NULL,
  calls         bigint NOT NULL,
  tokens_cost   numeric NOT NULL,
  first_seal_no bigint,
  last_seal_no  bigint,
  finished_at   timestamptz
);

SELECT pg_catalog.pg_extension_config_dump('kavach.dropped_month', '');

COMMENT ON TABLE kavach.dropped_month IS 'Months whose rows are in the ledger no more; the rollups have them.';
COMMENT ON COLUMN kavach.dropped_month.month IS 'The UTC month, its first day.';
COMMENT ON COLUMN kavach.dropped_month.kind IS 'dropped, or archived: then its table may be there.';
COMMENT ON COLUMN kavach.dropped_month.dropped_at IS 'Since when the ledger is without it.';
COMMENT ON COLUMN kavach.dropped_month.dropped_by IS 'Who did that; NULL: kavach.retention.';
COMMENT ON COLUMN kavach.dropped_month.relation IS 'The table with its rows, as far as kavach knows; NULL: dropped.';
COMMENT ON COLUMN kavach.dropped_month.schema IS 'Where the table of an archived month was to go; NULL: it stays.';
COMMENT ON COLUMN kavach.dropped_month.rows IS 'How many rows it had.';
COMMENT ON COLUMN kavach.dropped_month.calls IS 'How many of them were authorize decisions.';
COMMENT ON COLUMN kavach.dropped_month.tokens_cost IS 'sum(tokens_cost) over them.';
COMMENT ON COLUMN kavach.dropped_month.first_seal_no IS 'The first of its batches in kavach.batch.';
COMMENT ON COLUMN kavach.dropped_month.last_seal_no IS 'The last one.';
COMMENT ON COLUMN kavach.dropped_month.finished_at IS 'Since when its table is dropped, or where it is to be; NULL: others may still use it.';

CREATE FUNCTION kavach.require_months(since timestamptz, until timestamptz)
RETURNS timestamptz
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_require_months';

COMMENT ON FUNCTION kavach.require_months(timestamptz, timestamptz) IS
  'The lower bound of a sum over raw rows from since to until: since, or -infinity where it is NULL. Error KV005 where a month of them was dropped.';

CREATE FUNCTION kavach.kept_since(since timestamptz, until timestamptz)
RETURNS timestamptz
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_kept_since';

COMMENT ON FUNCTION kavach.kept_since(timestamptz, timestamptz) IS
  'The lower bound of a list of rows: since; where that is NULL or -infinity, the end of the last dropped month before until. Error KV005 where a month between was dropped, or until is before there are any.';

CREATE FUNCTION kavach.no_rows(checked timestamptz, "row" anyelement)
RETURNS SETOF anyelement
LANGUAGE c STABLE PARALLEL SAFE ROWS 1
AS 'MODULE_PATHNAME', 'kavach_no_rows';

COMMENT ON FUNCTION kavach.no_rows(timestamptz, anyelement) IS
  'No rows, of a type: has the former argument evaluated, kavach.require_months or kavach.kept_since, in a query that may come to look at no row of the ledger.';

CREATE FUNCTION kavach.apply_retention()
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_apply_retention';

COMMENT ON FUNCTION kavach.apply_retention() IS
'Has a worker drop now what kavach.retention makes due, and finish what was begun: true; false where older transactions still use a table, which goes when they have ended. The worker of the database does that all the time; to be seen at once. The setting is that of the database.
Errors: 25001 in a transaction block; 25006 read-only; 53000 no worker; and as kavach_drop_month, the first one of the months'' that could not go.';

CREATE FUNCTION @extschema@.kavach_drop_month(month date)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_drop_month';

COMMENT ON FUNCTION @extschema@.kavach_drop_month(date) IS
'Drops a month of the ledger, for good, whatever the caller''s transaction ends with: its rows are gone, bills, usage of whole days and total budgets stay. True; false where older transactions still use its table, which goes when they have ended.
month: any day of it; one that is over, and older than kavach.request_retention.
Errors: 22004 NULL; 22008 before 1970 or after 9999; 25001 in a transaction block; 25006 read-only; 42704 no such month; 53000 no worker; 55000 it is still needed, is no month of kavach''s, or is gone already; 55006 it has rows in open batches; 55P03 it is in use.';

CREATE FUNCTION @extschema@.kavach_archive_month(month date, schema text DEFAULT NULL)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_archive_month';

COMMENT ON FUNCTION @extschema@.kavach_archive_month(date, text) IS
'Takes a month out of the ledger as kavach_drop_month does, but keeps its table, which nobody can change: to be dumped, moved and dropped, or attached again.
schema: where the table goes; NULL: it stays in kavach.
Errors: as kavach_drop_month; 3F000 no such schema.';

CREATE FUNCTION @extschema@.kavach_attach_month(month date, relation regclass DEFAULT NULL)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_attach_month';

COMMENT ON FUNCTION @extschema@.kavach_attach_month(date, regclass) IS
'Puts a month back into the ledger whose table was kept, or restored: true.
relation: the table, which must be owned by the owner of the ledger; NULL: as kavach.dropped_month has it.
Errors: 22004 NULL; 22008 before 1970 or after 9999; 25006 read-only; 42501 another owner; 42704 a month that was not taken out; 42P01 no such table; 55000 it has not the rows that the month had.';
