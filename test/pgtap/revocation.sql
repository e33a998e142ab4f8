-- revocation.sql: a revoke policy takes the calling agent out, with the row that says so or not at all.
BEGIN;
SELECT plan(16);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_b', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_per_day": 10}', action => 'revoke') AS p \gset
SELECT is(row(code, tokens_remaining)::text, '(allowed,0)', 'an exact fit is no reason') FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 10);
SELECT is(row(allowed, code)::text, '(f,budget_exceeded)', 'check_budget tells') FROM kavach_check_budget('agt_a', 1);
SELECT is(status, 'active', 'and revokes nobody') FROM kavach.agent WHERE agent_id = 'agt_a';

-- Rolled back with its row.
SAVEPOINT before;
SELECT code FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 1);
ROLLBACK TO before;
SELECT is(status, 'active', 'a decision that rolls back revokes nobody') FROM kavach.agent WHERE agent_id = 'agt_a';
SELECT is(count(*), 1::bigint, 'and has no row') FROM kavach.audit_log;

SELECT is(row(a.allowed, a.code, a.policy_id, l.result, l.tokens_cost)::text, format('(f,budget_exceeded,%s,denied,0)', :'p'), 'past the limit: refused')
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 1) a, pg_temp.row_of(a.audit_id) AS l;
SELECT results_eq($$SELECT agent_id, status FROM kavach.agent ORDER BY 1$$,
                  $$VALUES ('agt_a', 'revoked'), ('agt_b', 'active')$$, 'the calling agent is revoked, the user''s other agent not');
SELECT is(status_changed_at, '2026-03-10 12:34:56Z', 'at that moment') FROM kavach.agent WHERE agent_id = 'agt_a';
SELECT matches(status_reason, :'p', 'status_reason names the policy') FROM kavach.agent WHERE agent_id = 'agt_a';
SELECT is(row(code, policy_id)::text, '(agent_revoked,)', 'a later call says agent_revoked') FROM kavach_authorize('agt_a', 'run', 'x');
SET LOCAL kavach.clock = '2026-03-11 12:00:00+00';
SELECT is(code, 'agent_revoked', 'in the next window too') FROM kavach_authorize('agt_a', 'run', 'x');

-- Restored, it is judged anew.
SELECT kavach_restore_agent('agt_a');
SELECT is(code, 'allowed', 'restored, in the new window it fits') FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 4);
SELECT is(code, 'budget_exceeded', 'and the other agent is judged by the same policy') FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 7);
SELECT is(string_agg(agent_id, ' '), 'agt_b', 'which revokes that one now') FROM kavach.agent WHERE status = 'revoked';

-- Usage past the limit is recorded and revokes nobody.
SELECT is(row(code, policy_id)::text, format('(over_budget,%s)', :'p'), 'usage past it: over_budget') FROM kavach_record_usage('agt_a', 50);
SELECT is(status, 'active', 'and nobody is revoked') FROM kavach.agent WHERE agent_id = 'agt_a';

SELECT * FROM finish();
ROLLBACK;
