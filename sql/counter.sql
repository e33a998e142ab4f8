-- counter.sql
--   What is counted and cached in memory, for operators: src/memory/ has how.

CREATE FUNCTION kavach.current_usage(
  scope text, subject text, period text, committed boolean,
  OUT period_start timestamptz, OUT tokens bigint, OUT calls bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_current_usage';

COMMENT ON FUNCTION kavach.current_usage(text, text, text, boolean) IS
  'What a subject has used in the current window: from its counter, or the ledger where it has none. committed: without what this transaction has charged itself. Errors: 22004, 22023 bad input.';

CREATE FUNCTION kavach.read_counters(
  OUT scope text, OUT subject text, OUT period text, OUT period_start timestamptz,
  OUT tokens_used bigint, OUT tokens_pending bigint, OUT calls_used bigint, OUT calls_pending bigint,
  OUT pins int)
RETURNS SETOF record
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_counters';

COMMENT ON FUNCTION kavach.read_counters() IS
  'The rows of kavach.counters.';

CREATE VIEW kavach.counters AS
SELECT * FROM kavach.read_counters();

COMMENT ON VIEW kavach.counters IS 'The usage of this database that is in memory, by subject and window; figures are NULL in one that is not loaded yet.';
COMMENT ON COLUMN kavach.counters.scope IS 'agent, user, tenant, all, or permission (its rate per hour).';
COMMENT ON COLUMN kavach.counters.subject IS 'The agent, user, tenant or permission id, of more than 37 bytes the beginning; NULL for all.';
COMMENT ON COLUMN kavach.counters.period IS 'hour, day, month, total, or five_minutes of a rate per hour.';
COMMENT ON COLUMN kavach.counters.period_start IS 'Start of the window (UTC); -infinity for total.';
COMMENT ON COLUMN kavach.counters.tokens_used IS 'Tokens charged by committed transactions.';
COMMENT ON COLUMN kavach.counters.tokens_pending IS 'Tokens charged by open transactions.';
COMMENT ON COLUMN kavach.counters.calls_used IS 'Admitted calls of committed transactions.';
COMMENT ON COLUMN kavach.counters.calls_pending IS 'Admitted calls of open transactions.';
COMMENT ON COLUMN kavach.counters.pins IS 'How often open transactions hold it, so that it stays.';

CREATE FUNCTION kavach.read_counter_stats(OUT loads bigint, OUT evictions bigint, OUT refusals bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_counter_stats';

COMMENT ON FUNCTION kavach.read_counter_stats() IS
  'The row of kavach.counter_stats.';

CREATE VIEW kavach.counter_stats AS
SELECT * FROM kavach.read_counter_stats();

COMMENT ON VIEW kavach.counter_stats IS 'What the counters of this server have been through since its start.';
COMMENT ON COLUMN kavach.counter_stats.loads IS 'Times that a subject''s counters were read from the ledger.';
COMMENT ON COLUMN kavach.counter_stats.evictions IS 'Subjects, and rates, that made room for others.';
COMMENT ON COLUMN kavach.counter_stats.refusals IS 'Calls that failed because every counter was in use (53200).';

CREATE FUNCTION @extschema@.kavach_reload_counters()
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_reload_counters';

COMMENT ON FUNCTION @extschema@.kavach_reload_counters() IS
'Drops the counters of this database from memory, so that they are read from the ledger again, and returns how many. Needed only after rows were put into the ledger by hand, with an id of their time (UUIDv7).
Waits for open transactions that have called kavach, and holds up others until this one ends.
Errors: 25001 in a transaction that has called kavach itself; 55000 where kavach is not preloaded.';

CREATE FUNCTION kavach.read_cache_stats(OUT hits bigint, OUT misses bigint, OUT evictions bigint, OUT entries bigint, OUT bytes bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_cache_stats';

COMMENT ON FUNCTION kavach.read_cache_stats() IS
  'The row of kavach.cache_stats.';

CREATE VIEW kavach.cache_stats AS
SELECT * FROM kavach.read_cache_stats();

COMMENT ON VIEW kavach.cache_stats IS 'What the cache of agents, permissions and limits of this server has been through since its start, and what it holds.';
COMMENT ON COLUMN kavach.cache_stats.hits IS 'Calls that found there all that they looked up.';
COMMENT ON COLUMN kavach.cache_stats.misses IS 'Calls that had to read the tables.';
COMMENT ON COLUMN kavach.cache_stats.evictions IS 'Entries that made room for others.';
COMMENT ON COLUMN kavach.cache_stats.entries IS 'Entries that are there: agents, users, tenants, and one for each database.';
COMMENT ON COLUMN kavach.cache_stats.bytes IS 'What they take of kavach.cache_size.';
