-- min_tokens.sql: a caller that can live with less is granted what is left.
BEGIN;
SELECT plan(23);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_per_day": 100}', action => 'revoke') AS p \gset
SELECT is(row(code, tokens_granted, tokens_remaining)::text, '(allowed,60,40)', 'all of it where it fits')
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 60, min_tokens => 10);
SELECT audit_id, reason, row(allowed, code, policy_id, tokens_granted, tokens_remaining)::text AS answer
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 57, min_tokens => 10) \gset
SELECT is(:'answer'::text, '(t,allowed,,40,0)', 'what is left where it does not');
SELECT matches(:'reason'::text, '40.*57|57.*40', 'and the reason gives both figures');
SELECT results_eq(format('SELECT tokens_requested, min_tokens, tokens_cost FROM kavach.audit_log WHERE id = %L', :'audit_id'),
                  $$VALUES (57::bigint, 10::bigint, 40::bigint)$$, 'the ledger keeps what was asked and charges what was granted');
SELECT is(status, 'active', 'nobody is revoked') FROM kavach.agent WHERE agent_id = 'agt_a';
SET LOCAL client_min_messages = error;
SELECT is(tokens_charged, -39::bigint, 'the grant is what a settlement releases')
  FROM kavach_record_usage('agt_a', 1, audit_id => :'audit_id');
SELECT kavach_update_policy(:'p', action => 'block');
SELECT is(row(a.code, a.policy_id, a.tokens_remaining, a.retry_at, l.tokens_cost, l.tokens_requested, l.min_tokens)::text,
          format('(budget_exceeded,%s,39,"2026-03-11 00:00:00+00",0,50,40)', :'p'), 'less than min_tokens is left: refused')
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 50, min_tokens => 40) a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(row(code, tokens_granted, tokens_remaining)::text, '(allowed,39,0)', 'exactly min_tokens is left: admitted')
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 50, min_tokens => 39);
SELECT is(code, 'budget_exceeded', 'nothing is left') FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 50, min_tokens => 1);
SELECT kavach_update_policy(:'p', action => 'revoke');
SELECT is(code, 'budget_exceeded', 'below min_tokens the policy''s action follows')
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 50, min_tokens => 1);
SELECT is(status, 'revoked', 'here, revoke') FROM kavach.agent WHERE agent_id = 'agt_a';

-- The least over all limits other than warn.
SELECT kavach_create_agent('agt_b', 'bob', 'brix', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_b', limits => '{"max_tokens_cost_per_hour": 50, "max_tokens_cost_total": 70}'),
       kavach_create_policy(tenant_id => 'brix', limits => '{"max_tokens_cost_per_month": 30}', action => 'throttle') AS tight,
       kavach_create_policy(user_id => 'bob', limits => '{"max_tokens_cost_per_hour": 5}', action => 'warn') AS warn,
       kavach_create_policy(user_id => 'bob', limits => '{"max_calls_per_hour": 2}') AS calls \gset
SELECT is(row(allowed, code, policy_id, tokens_granted, tokens_remaining, calls_remaining)::text,
          format('(t,budget_warning,%s,30,0,1)', :'warn'), 'the tightest limit is the grant; a warn warns')
  FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 1000, min_tokens => 1);
SELECT kavach_drop_policy(:'tight');
SELECT is(row(allowed, tokens_granted, tokens_remaining, calls_remaining)::text, '(t,20,0,0)', 'then the next')
  FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 1000, min_tokens => 20);
SET LOCAL kavach.clock = '2026-03-10 13:00:00+00';
SELECT is(row(allowed, tokens_granted, tokens_remaining, calls_remaining)::text, '(t,20,0,1)', 'then the total')
  FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 1000, min_tokens => 20);
SELECT is(code, 'budget_exceeded', 'and then nothing') FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 1000, min_tokens => 1);

-- Call limits take no part in a grant; without any token limit all is granted.
SELECT kavach_create_agent('agt_c', 'cyd', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_c', limits => '{"max_calls_total": 1}');
SELECT is(row(allowed, tokens_granted, tokens_remaining, calls_remaining)::text, '(t,1000,,0)', 'no token limit: all of it')
  FROM kavach_authorize('agt_c', 'run', 'x', tokens_cost => 1000, min_tokens => 1);
SELECT is(code, 'budget_exceeded', 'a call limit refuses whatever the tokens') FROM kavach_authorize('agt_c', 'run', 'x', tokens_cost => 1000, min_tokens => 1);

-- What a refund has left below zero can be granted again.
SELECT kavach_create_agent('agt_d', 'dan', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_d', limits => '{"max_tokens_cost_total": 10}');
SELECT kavach_adjust('agt_d', -5, 'credit');
SELECT is(row(allowed, tokens_granted, tokens_remaining)::text, '(t,15,0)', 'a credit widens the grant')
  FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 20, min_tokens => 11);

SELECT throws_ok(format('SELECT kavach_authorize(%L, %L, %L, tokens_cost => %s, min_tokens => %s)', 'agt_c', 'run', 'x', cost, least_), '22023', NULL,
                 format('tokens_cost %s, min_tokens %s', cost, least_))
  FROM (VALUES ('NULL', '1'), ('10', '0'), ('10', '-1'), ('10', '11'), ('0', '1')) AS t (cost, least_);

SELECT * FROM finish();
ROLLBACK;
