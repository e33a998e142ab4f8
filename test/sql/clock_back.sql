-- The clock steps back within a transaction that has given something back: were it to load the window before, and then
-- be rolled back, that window would have room that nobody has given back.
SET client_min_messages = error;
SET kavach.clock = '2026-03-05 10:50:00+00';
SELECT kavach_create_agent('agt_back', 'ann of clock_back', 'acme of clock_back', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT count(kavach_create_policy(agent_id => 'agt_back', limits => '{"max_tokens_cost_per_hour": 100}'));
SELECT audit_id FROM kavach_authorize('agt_back', 'run', 'x', tokens_cost => 100) \gset
SELECT kavach_reload_counters() > 0;
BEGIN;
SET LOCAL kavach.clock = '2026-03-05 11:05:00+00';
SAVEPOINT given_back;
SELECT tokens_charged, tokens_remaining FROM kavach_record_usage('agt_back', 0, :'audit_id');
RELEASE given_back;
SET LOCAL kavach.clock = '2026-03-05 10:59:00+00';
SELECT code, tokens_remaining FROM kavach_check_budget('agt_back', 1);
SELECT code, tokens_remaining FROM kavach_authorize('agt_back', 'run', 'x', tokens_cost => 1);
ROLLBACK;
SELECT code, tokens_remaining FROM kavach_authorize('agt_back', 'run', 'x', tokens_cost => 1);
SELECT scope, tokens_used, tokens_pending FROM kavach.counters WHERE period = 'hour' AND period_start = '2026-03-05 10:00:00+00' AND subject IN ('agt_back', 'ann of clock_back', 'acme of clock_back') ORDER BY 1;

-- Committed, it counts there once the window is read anew.
SET kavach.clock = '2026-03-05 11:05:00+00';
SELECT tokens_charged, tokens_remaining FROM kavach_record_usage('agt_back', 0, :'audit_id');
SELECT kavach_reload_counters() > 0;
SET kavach.clock = '2026-03-05 10:59:00+00';
SELECT code, tokens_remaining FROM kavach_authorize('agt_back', 'run', 'x', tokens_cost => 1);
