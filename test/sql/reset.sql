-- reset.sql: a reset forgives what was used in the current windows, once, and touches no usage.
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET kavach.clock = '2026-03-10 09:00:00+00';
SELECT kavach_create_agent('agt_reset', 'rosa', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_reset', limits => '{"max_tokens_cost_per_day": 100, "max_tokens_cost_total": 250, "max_calls_per_day": 3}') AS pol \gset
PREPARE status AS SELECT subject, measure, period, amount, used, remaining, status FROM kavach.budget_status WHERE policy_id = $1 ORDER BY 1, 2, 3;

SELECT code, tokens_remaining, calls_remaining, audit_id AS first FROM kavach_authorize('agt_reset', 'run', 'x', 100) \gset
SELECT code, tokens_remaining, calls_remaining FROM kavach_authorize('agt_reset', 'run', 'x', 1);
SELECT kavach_reset_policy(:'pol');
EXECUTE status(:'pol');
SELECT code, tokens_remaining, calls_remaining FROM kavach_authorize('agt_reset', 'run', 'x', 60);
EXECUTE status(:'pol');
-- The ledger knows of no reset.
SELECT sum(tokens_cost) FROM kavach_query_audit('agt_reset');

-- A refund of what was forgiven frees nothing: used does not go below 0.
SELECT tokens_charged, code, tokens_remaining FROM kavach_record_usage('agt_reset', 0, :'first');
EXECUTE status(:'pol');
-- What is told after the charge is what stands then.
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset', 'run', 'x', 50);
SELECT tokens_remaining FROM kavach_check_budget('agt_reset');
EXECUTE status(:'pol');

-- The next day has nothing to forgive; the total goes on from its reset.
SET kavach.clock = '2026-03-11 09:00:00+00';
SELECT code, tokens_remaining, calls_remaining FROM kavach_authorize('agt_reset', 'run', 'x', 100);
EXECUTE status(:'pol');
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset', 'run', 'x', 1);
-- Yesterday, seen again, keeps its reset.
SET kavach.clock = '2026-03-10 10:00:00+00';
EXECUTE status(:'pol');
-- A second reset, in another day, forgives anew.
SET kavach.clock = '2026-03-11 10:00:00+00';
SELECT kavach_reset_policy(:'pol');
EXECUTE status(:'pol');
SELECT code, tokens_remaining, calls_remaining FROM kavach_authorize('agt_reset', 'run', 'x', 40);

-- A reset that rolls back has not happened.
BEGIN;
SELECT kavach_reset_policy(:'pol');
SELECT tokens_remaining FROM kavach_check_budget('agt_reset');
ROLLBACK;
SELECT tokens_remaining FROM kavach_check_budget('agt_reset');
-- It forgives committed usage, not what its own transaction has charged.
BEGIN;
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset', 'run', 'x', 30);
SELECT kavach_reset_policy(:'pol');
COMMIT;
SELECT tokens_remaining FROM kavach_check_budget('agt_reset');
SELECT kavach_drop_policy(:'pol');
SELECT count(*) FROM kavach.budget_baseline WHERE policy_id = :'pol';

-- An `each` policy is reset for one of its subjects.
SET kavach.clock = '2026-03-12 09:00:00+00';
SELECT kavach_create_agent('agt_reset1', 'rob', 'resetco', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_agent('agt_reset2', 'rae', 'resetco', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_month": 10, "max_calls_per_hour": 5}') AS pol \gset
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset1', 'run', 'x', 10);
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset2', 'run', 'x', 10);
SELECT kavach_reset_policy(:'pol', 'rob');
PREPARE each_status AS SELECT subject, measure, period, amount, used, remaining, status FROM kavach.budget_status
  WHERE policy_id = $1 AND subject IN ('rob', 'rae') AND used > 0 ORDER BY 1, 2, 3;
EXECUTE each_status(:'pol');
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset1', 'run', 'x', 10);
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset2', 'run', 'x', 10);
EXECUTE each_status(:'pol');
SELECT kavach_drop_policy(:'pol');

-- A blocked call's way out: reset, then it fits; a revoked agent is restored apart.
SELECT kavach_create_policy(agent_id => 'agt_reset2', limits => '{"max_tokens_cost_total": 10}', action => 'revoke') AS pol \gset
SELECT code FROM kavach_authorize('agt_reset2', 'run', 'x', 1);
SELECT kavach_reset_policy(:'pol');
SELECT code FROM kavach_authorize('agt_reset2', 'run', 'x', 1);
SELECT kavach_restore_agent('agt_reset2');
SELECT code, tokens_remaining FROM kavach_authorize('agt_reset2', 'run', 'x', 1);
SELECT kavach_drop_policy(:'pol');

-- The pool of all agents, and a tenant; a reset with nothing to forgive changes nothing.
SELECT kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 1000}', action => 'throttle') AS pol \gset
SELECT kavach_create_policy(tenant_id => 'resetco', limits => '{"max_tokens_cost_per_month": 25, "max_calls_total": 2}') AS co \gset
SELECT code, tokens_remaining, calls_remaining FROM kavach_authorize('agt_reset1', 'run', 'x', 9);
SELECT kavach_reset_policy(:'pol'), kavach_reset_policy(:'co');
SELECT kavach_reset_policy(:'pol'), kavach_reset_policy(:'co');
SELECT code, tokens_remaining, calls_remaining FROM kavach_authorize('agt_reset1', 'run', 'x', 9);
EXECUTE status(:'pol');
EXECUTE status(:'co');
SELECT kavach_reset_policy(:'pol'), kavach_reset_policy(:'pol');
EXECUTE status(:'pol');
SELECT kavach_drop_policy(:'pol'), kavach_drop_policy(:'co');
