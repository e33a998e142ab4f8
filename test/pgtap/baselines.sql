-- baselines.sql: what a reset forgives is found by index, however many subjects have been reset.
BEGIN;
SELECT plan(5);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';
SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_day": 100}') AS each \gset
SELECT kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_per_day": 1000}') AS all \gset
SELECT code FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 60);
SELECT kavach_reset_policy(:'each', 'ann'), kavach_reset_policy(:'all');
UPDATE kavach.budget_baseline SET usage = 60;    -- as if the call had been committed before
INSERT INTO kavach.budget_baseline
SELECT :'each', 'tokens', 'day', 'user_' || n, '2026-03-10Z', 0 FROM generate_series(1, 20000) n;
ANALYZE kavach.budget_baseline;

-- Rows that a statement takes from the table, by scan or by index, are counted at once in the transaction that does.
CREATE FUNCTION pg_temp.looks_at(statement text, OUT answer text, OUT looked bigint) LANGUAGE plpgsql AS $$
DECLARE
  before bigint := pg_temp.rows_read();
BEGIN
  EXECUTE statement INTO answer;
  looked := pg_temp.rows_read() - before;
END $$;
CREATE FUNCTION pg_temp.rows_read() RETURNS bigint LANGUAGE sql AS $$
  SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relid = 'kavach.budget_baseline'::regclass
$$;
SELECT is(looked, 20002::bigint, 'a scan is seen') FROM pg_temp.looks_at('SELECT count(*) FROM kavach.budget_baseline');

SELECT * FROM pg_temp.looks_at($$SELECT concat_ws(' ', code, tokens_remaining) FROM kavach_authorize('agt_a', 'run', 'y', tokens_cost => 60)$$) \gset
SELECT is(:'answer'::text, 'allowed 40', 'a call obeys what was forgiven');
SELECT cmp_ok(:looked, '<=', 8, 'and reads no other baselines');
SELECT * FROM pg_temp.looks_at($$SELECT string_agg(concat_ws(' ', coalesce(subject, '-'), used), ', ' ORDER BY subject) FROM kavach.budget_status$$) \gset
SELECT is(:'answer'::text, 'ann 60, - 60', 'so does budget_status');
SELECT cmp_ok(:looked, '<=', 8, 'and reads no others either');

SELECT * FROM finish();
ROLLBACK;
