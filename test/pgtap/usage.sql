-- usage.sql: what was spent is recorded, alone or settling an authorization.
BEGIN;
SELECT plan(69);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;  -- everything here settles in its own transaction, which warns
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_b', 'bob', 'brix', permissions => '[{"resource": "*", "actions": ["*"]}]');

-- Alone.
SELECT usage_id AS u, row(tokens_charged, code, policy_id, tokens_remaining, calls_remaining)::text AS answer
  FROM kavach_record_usage('agt_a', 70, metadata => '{"k": 1}') \gset
SELECT is(:'answer'::text, '(70,recorded,,,)', 'usage alone is charged whole');
SELECT results_eq(format($$SELECT kind, agent_id, user_id, tenant_id, result, tokens_requested, coalesce(tokens_released, 0), tokens_cost, settles, request_id, metadata
                             FROM kavach.audit_log WHERE id = %L$$, :'u'),
                  $$VALUES ('usage', 'agt_a', 'ann', 'acme', 'allowed', 70::bigint, 0::bigint, 70::bigint, NULL::uuid, NULL::text, '{"k": 1}'::jsonb)$$,
                  'and is in the ledger');
SELECT isnt(usage_id, :'u', 'without a key it is no repetition') FROM kavach_record_usage('agt_a', 70);

-- By audit_id: less, more, the same, nothing.
SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100) \gset
SELECT usage_id AS u, row(tokens_charged, code)::text AS answer FROM kavach_record_usage('agt_a', 40, :'a') \gset
SELECT is(:'answer'::text, '(-60,recorded)', 'less was spent: a refund');
SELECT results_eq(format('SELECT kind, result, tokens_requested, tokens_released, tokens_cost, settles, request_id FROM kavach.audit_log WHERE id = %L', :'u'),
                  format('VALUES (%L, %L, 40::bigint, 100::bigint, -60::bigint, %L::uuid, NULL::text)', 'usage', 'allowed', :'a'),
                  'the row names the authorization and what it releases');
SELECT is(row(usage_id, tokens_charged, code)::text, format('(%s,-60,recorded)', :'u'), 'the same again: the first answer')
  FROM kavach_record_usage('agt_a', 40, :'a');
SELECT throws_ok(format('SELECT kavach_record_usage(%L, 41, %L)', 'agt_a', :'a'), 'KV003', NULL, 'other tokens: an error');
SELECT is(count(*), 1::bigint, 'one row settles it') FROM kavach.audit_log WHERE settles = :'a';

SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100) \gset
SELECT is(tokens_charged, 30::bigint, 'more was spent: the rest is charged') FROM kavach_record_usage('agt_a', 130, :'a');
SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100) \gset
SELECT is(tokens_charged, 0::bigint, 'as much as was granted: nothing') FROM kavach_record_usage('agt_a', 100, :'a');
SELECT is(count(*), 1::bigint, 'but it is settled') FROM kavach.audit_log WHERE settles = :'a';
SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100) \gset
SELECT is(tokens_charged, -100::bigint, '0 tokens release it') FROM kavach_record_usage('agt_a', 0, :'a');
SELECT throws_ok(format('SELECT kavach_record_usage(%L, 100, %L)', 'agt_a', :'a'), 'KV003', NULL, 'released is settled');
SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x') \gset
SELECT usage_id AS u, tokens_charged AS charged FROM kavach_record_usage('agt_a', 25, :'a') \gset
SELECT is(:charged, 25, 'an authorization without cost: all is charged');
SELECT is(row(tokens_requested, tokens_released, tokens_cost)::text, '(25,0,25)', 'and nothing released') FROM kavach.audit_log WHERE id = :'u';

-- By request_id.
SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100, request_id => 'r1') \gset
SELECT usage_id AS u, tokens_charged AS charged FROM kavach_record_usage('agt_a', 40, request_id => 'r1') \gset
SELECT is(:charged, -60, 'the request_id of an authorization settles it');
SELECT is(settles, :'a', 'that one') FROM kavach.audit_log WHERE id = :'u';
SELECT is(row(usage_id, tokens_charged)::text, format('(%s,-60)', :'u'), 'again: the first answer') FROM kavach_record_usage('agt_a', 40, request_id => 'r1');
SELECT is(row(usage_id, tokens_charged)::text, format('(%s,-60)', :'u'), 'by audit_id too') FROM kavach_record_usage('agt_a', 40, :'a');
SELECT is(row(usage_id, tokens_charged)::text, format('(%s,-60)', :'u'), 'and by both') FROM kavach_record_usage('agt_a', 40, :'a', 'r1');
SELECT throws_ok($$SELECT kavach_record_usage('agt_a', 41, request_id => 'r1')$$, 'KV003', NULL, 'other tokens: an error');
SELECT throws_ok(format($$SELECT kavach_record_usage('agt_a', 41, %L)$$, :'a'), 'KV003', NULL, 'by audit_id too');

SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100, request_id => 'r2') \gset
SELECT usage_id AS u FROM kavach_record_usage('agt_a', 40, :'a') \gset
SELECT is(row(usage_id, tokens_charged)::text, format('(%s,-60)', :'u'), 'settled by audit_id, repeated by request_id')
  FROM kavach_record_usage('agt_a', 40, request_id => 'r2');
SELECT throws_ok($$SELECT kavach_record_usage('agt_a', 41, request_id => 'r2')$$, 'KV003', NULL, 'with other tokens: an error');

SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100, request_id => 'r3') \gset
SELECT is(tokens_charged, -60::bigint, 'audit_id and its request_id together') FROM kavach_record_usage('agt_a', 40, :'a', 'r3');
SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100, request_id => 'r4') \gset
SELECT throws_ok(format($$SELECT kavach_record_usage('agt_a', 40, %L, 'r3')$$, :'a'), 'KV001', NULL, 'another authorization''s request_id: an error');
SELECT throws_ok(format($$SELECT kavach_record_usage('agt_a', 40, %L, 'r5')$$, :'a'), 'KV001', NULL, 'a request_id that nobody used: an error');
SELECT audit_id AS b FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 100) \gset
SELECT throws_ok(format($$SELECT kavach_record_usage('agt_a', 40, %L, 'r5')$$, :'b'), 'KV001', NULL, 'an authorization made without: an error');
SELECT is(count(*), 0::bigint, 'none of them was settled') FROM kavach.audit_log WHERE settles IN (:'a', :'b');

-- A request_id of no authorization is the key of the usage row itself.
SELECT usage_id AS u, tokens_charged AS charged FROM kavach_record_usage('agt_a', 9, request_id => 'alone') \gset
SELECT is(:charged, 9, 'charged whole');
SELECT is(row(request_id, settles)::text, '(alone,)', 'under its key') FROM kavach.audit_log WHERE id = :'u';
SELECT is(row(usage_id, tokens_charged)::text, format('(%s,9)', :'u'), 'again: the first answer') FROM kavach_record_usage('agt_a', 9, request_id => 'alone');
SELECT throws_ok($$SELECT kavach_record_usage('agt_a', 10, request_id => 'alone')$$, 'KV003', NULL, 'other tokens: an error');
SELECT is(tokens_charged, 9::bigint, 'another agent''s key is its own') FROM kavach_record_usage('agt_b', 9, request_id => 'alone');
SELECT code FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 3, request_id => 'alone');
SELECT is(row(usage_id, tokens_charged)::text, format('(%s,9)', :'u'), 'usage rows are looked up before authorizations')
  FROM kavach_record_usage('agt_a', 9, request_id => 'alone');
SELECT is(count(*), 2::bigint, 'one row per agent') FROM kavach.audit_log WHERE request_id = 'alone' AND kind = 'usage';

-- A refused call has nothing to settle.
SELECT audit_id AS refused FROM kavach_authorize('agt_ghost', 'run', 'x', tokens_cost => 5, request_id => 'g') \gset
SELECT kavach_create_agent('agt_bare', 'ann');
SELECT audit_id AS denied FROM kavach_authorize('agt_bare', 'run', 'x', tokens_cost => 5, request_id => 'd') \gset
SELECT throws_ok(format('SELECT kavach_record_usage(%L, 5, %L)', 'agt_bare', :'denied'), 'KV004', NULL, 'a refused audit_id: an error');
SELECT is(row(tokens_charged, code)::text, '(5,recorded)', 'its request_id is only a key') FROM kavach_record_usage('agt_bare', 5, request_id => 'd');
SELECT audit_id AS a FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 5) \gset
SELECT throws_ok(format('SELECT kavach_record_usage(%L, 5, %L)', 'agt_b', :'a'), 'KV002', NULL, 'another agent''s audit_id: an error');
SELECT throws_ok(format('SELECT kavach_record_usage(%L, 5, %L)', 'agt_a', gen_random_uuid()), 'KV002', NULL, 'an unknown one too');
SELECT throws_ok(format('SELECT kavach_record_usage(%L, 9, %L)', 'agt_a', :'u'), 'KV002', NULL, 'and that of a usage row');
SELECT throws_ok(format('SELECT kavach_record_usage(%L, 5, %L)', 'agt_ghost', :'refused'), 'KV004', NULL, 'nor can that of an unknown agent be settled');
SELECT throws_ok($$SELECT kavach_record_usage('agt_ghost', 5)$$, '42704', NULL, 'however it is called');

-- Spent tokens are recorded, whatever has become of the agent.
SELECT audit_id AS a FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 50) \gset
SELECT audit_id AS old FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 50, request_id => 'moved') \gset
SELECT kavach_update_agent('agt_b', '{"user_id": "bea", "tenant_id": null}');
SELECT results_eq(format('SELECT user_id, tenant_id, tokens_cost FROM kavach_record_usage(%L, 80, %L) u, pg_temp.row_of(u.usage_id) AS l', 'agt_b', :'a'),
                  $$VALUES ('bob', 'brix', 30::bigint)$$, 'settling charges the owner of the authorization');
SELECT results_eq($$SELECT user_id, tenant_id, tokens_cost FROM kavach_record_usage('agt_b', 10, request_id => 'moved') u, pg_temp.row_of(u.usage_id) AS l$$,
                  $$VALUES ('bob', 'brix', -40::bigint)$$, 'by request_id as well');
SELECT results_eq($$SELECT user_id, tenant_id, tokens_cost FROM kavach_record_usage('agt_b', 80) u, pg_temp.row_of(u.usage_id) AS l$$,
                  $$VALUES ('bea', NULL::text, 80::bigint)$$, 'usage alone the present one');
SELECT audit_id AS a FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 50) \gset
SELECT kavach_revoke_agent('agt_b');
SELECT is(row(tokens_charged, code)::text, '(10,recorded)', 'a revoked agent''s authorization is settled') FROM kavach_record_usage('agt_b', 60, :'a');
SELECT is(row(tokens_charged, code)::text, '(60,recorded)', 'and its usage recorded') FROM kavach_record_usage('agt_b', 60);
SELECT kavach_restore_agent('agt_b'), kavach_update_agent('agt_b', '{"expires_at": "2026-01-01Z"}');
SELECT is(row(tokens_charged, code)::text, '(60,recorded)', 'an expired one''s too') FROM kavach_record_usage('agt_b', 60);

-- Budgets: recorded past them, and told.
SELECT kavach_create_agent('agt_c', 'cyd', 'cove', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_c', limits => '{"max_tokens_cost_per_day": 100, "max_calls_per_day": 9}') AS p \gset
SELECT is(row(code, policy_id, tokens_remaining, calls_remaining)::text, '(recorded,,1,9)', 'below the limit') FROM kavach_record_usage('agt_c', 99);
SELECT is(row(code, policy_id, tokens_remaining, calls_remaining)::text, format('(over_budget,%s,0,9)', :'p'), 'at the limit') FROM kavach_record_usage('agt_c', 1);
SELECT is(row(tokens_charged, code, tokens_remaining)::text, '(500,over_budget,0)', 'past it: recorded all the same') FROM kavach_record_usage('agt_c', 500);
SELECT is(row(code, tokens_remaining)::text, '(budget_exceeded,0)', 'and the next call is refused') FROM kavach_authorize('agt_c', 'run', 'x', tokens_cost => 1);
SELECT kavach_update_policy(:'p', enabled => false);
SELECT is(row(code, policy_id, tokens_remaining)::text, '(recorded,,)', 'a disabled policy is not told') FROM kavach_record_usage('agt_c', 1);
SELECT kavach_create_policy(tenant_id => 'cove', limits => '{"max_tokens_cost_total": 10}', action => 'warn') AS warn \gset
SELECT is(row(code, policy_id, tokens_remaining)::text, format('(over_budget,%s,)', :'warn'), 'a warn is') FROM kavach_record_usage('agt_c', 1);
SELECT kavach_create_policy(user_id => 'cyd', limits => '{"max_tokens_cost_total": 10}', action => 'throttle') AS throttle \gset
SELECT is(policy_id, :'throttle', 'ties as for refusals') FROM kavach_record_usage('agt_c', 1);

-- No call, no rate.
SELECT is(count(*), 0::bigint, 'usage rows have no permission') FROM kavach.audit_log WHERE kind = 'usage' AND permission_id IS NOT NULL;
-- A settlement that a budget's last tokens free lets the next call in.
SELECT kavach_create_agent('agt_d', 'dan', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_d', limits => '{"max_tokens_cost_per_day": 100}');
SELECT audit_id AS a FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 100) \gset
SELECT is(code, 'budget_exceeded', 'an estimate holds the budget') FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 1);
SELECT is(row(tokens_charged, code, tokens_remaining)::text, '(-70,recorded,70)', 'settled, the rest is free') FROM kavach_record_usage('agt_d', 30, :'a');
SELECT is(row(code, tokens_remaining)::text, '(allowed,0)', 'for the next call') FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 70);

-- Limits are those of the owner that is charged; an `each` limit is told under its policy, where it does not yield.
SET LOCAL kavach.clock = '2026-07-10 12:00:00+00';
SELECT kavach_create_agent('agt_e', 'eve', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT audit_id AS a FROM kavach_authorize('agt_e', 'run', 'x', tokens_cost => 10) \gset
SELECT kavach_update_agent('agt_e', '{"user_id": "eva"}');
SELECT kavach_create_policy(user_id => 'eve', limits => '{"max_tokens_cost_per_month": 15}') AS eve,
       kavach_create_policy(user_id => 'eva', limits => '{"max_tokens_cost_per_month": 1000}') AS eva \gset
SELECT is(row(code, policy_id, tokens_remaining)::text, format('(over_budget,%s,0)', :'eve'), 'settled past the limit of the owner it was made for')
  FROM kavach_record_usage('agt_e', 20, :'a');
SELECT is(row(code, policy_id, tokens_remaining)::text, '(recorded,,999)', 'the present owner''s is another') FROM kavach_record_usage('agt_e', 1);
SELECT kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_month": 2}') AS each \gset
SELECT is(row(code, policy_id)::text, '(recorded,)', 'an `each` that yields is not told') FROM kavach_record_usage('agt_e', 5);
SELECT kavach_drop_policy(:'eva');
SELECT is(row(code, policy_id, tokens_remaining)::text, format('(over_budget,%s,0)', :'each'), 'one that does not is') FROM kavach_record_usage('agt_e', 1);

-- What an agent has left open is settled when the agent is gone, too.
SELECT kavach_create_agent('agt_f', 'fay', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(user_id => 'fay', limits => '{"max_tokens_cost_per_month": 100}');
SELECT audit_id AS a FROM kavach_authorize('agt_f', 'run', 'x', tokens_cost => 30) \gset
SELECT audit_id AS b FROM kavach_authorize('agt_f', 'run', 'x', tokens_cost => 30, request_id => 'open') \gset
DELETE FROM kavach.agent WHERE agent_id = 'agt_f';
SELECT is(row(tokens_charged, code, tokens_remaining)::text, '(-20,recorded,60)', 'of a dropped agent: by audit_id') FROM kavach_record_usage('agt_f', 10, :'a');
SELECT is(row(tokens_charged, code, tokens_remaining)::text, '(-30,recorded,90)', 'by request_id') FROM kavach_record_usage('agt_f', 0, request_id => 'open');
SELECT is(row(tokens_charged, code, tokens_remaining)::text, '(-30,recorded,90)', 'as often as it is asked') FROM kavach_record_usage('agt_f', 0, request_id => 'open');
SELECT is(row(user_id, tenant_id, action)::text, '(fay,acme,run)', 'for the owner that it was made for') FROM kavach.audit_log WHERE settles = :'b';
SELECT throws_ok($$SELECT kavach_record_usage('agt_f', 5)$$, '42704', NULL, 'other usage is an error then');

SELECT * FROM finish();
ROLLBACK;
