-- adjust.sql: credits and charges by hand, as rows of the ledger.
BEGIN;
SELECT plan(20);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_per_month": 100}') AS p,
       kavach_adjust('agt_a', -30, 'goodwill, ticket 7') AS id \gset
SELECT results_eq(format($$SELECT kind, result, agent_id, user_id, tenant_id, tokens_cost, reason, ts, settles, request_id, permission_id
                             FROM kavach.audit_log WHERE id = %L$$, :'id'),
                  $$VALUES ('adjustment', 'allowed', 'agt_a', 'ann', 'acme', -30::bigint, 'goodwill, ticket 7', timestamptz '2026-03-10 12:34:56Z',
                            NULL::uuid, NULL::text, NULL::bigint)$$, 'a credit is a row with its reason');
SELECT is(tokens_remaining, 130::bigint, 'and widens the budget') FROM kavach_check_budget('agt_a');
SELECT is(tokens_remaining, 130::bigint, 'as often as one looks') FROM kavach_check_budget('agt_a');
SELECT kavach_adjust('agt_a', 90, 'forgotten invoice');
SELECT is(tokens_remaining, 40::bigint, 'a charge narrows it') FROM kavach_check_budget('agt_a');
SELECT isnt(kavach_adjust('agt_a', 90, 'forgotten invoice'), kavach_adjust('agt_a', 90, 'forgotten invoice'), 'each is one of its own');
SELECT is(row(allowed, tokens_remaining)::text, '(f,0)', 'also past the limit') FROM kavach_check_budget('agt_a', 1);
SELECT kavach_revoke_agent('agt_a');
SELECT isnt(kavach_adjust('agt_a', -200, 'settled out of court'), NULL, 'a revoked agent can be credited');
SELECT results_eq($$SELECT agent_id, calls, denied, calls_without_cost, tokens_cost FROM kavach_cost_by_agent(NULL, NULL)$$,
                  $$VALUES ('agt_a', 0::bigint, 0::bigint, 0::bigint, 40::numeric)$$, 'adjustments are on the bill and are no calls');
SELECT kavach_update_agent('agt_a', '{"user_id": "bea", "tenant_id": "brix"}');
SELECT results_eq(format($$SELECT user_id, tenant_id FROM kavach.audit_log WHERE id = %L$$, kavach_adjust('agt_a', 1, 'x')),
                  $$VALUES ('bea', 'brix')$$, 'they go to the present owner');

-- A credit in the next month leaves the closed one as it was.
SET LOCAL kavach.clock = '2026-04-01 00:00:00+00';
SELECT kavach_adjust('agt_a', -10, 'late');
SELECT is(sum(tokens_cost), 41::numeric, 'March') FROM kavach_billing_report(2026, 3);
SELECT is(sum(tokens_cost), -10::numeric, 'April') FROM kavach_billing_report(2026, 4);

-- A request_id makes it safe to ask twice.
SELECT kavach_adjust('agt_a', -7, 'credit 8', request_id => 'ticket 8') AS id \gset
SELECT is(kavach_adjust('agt_a', -7, 'credit 8', request_id => 'ticket 8'), :'id'::uuid, 'a retry is answered with the first row');
SELECT is(row(tokens_cost, reason)::text, '(-7,"credit 8")', 'of which there is one') FROM kavach.audit_log WHERE request_id = 'ticket 8';
SELECT throws_ok($$SELECT kavach_adjust('agt_a', -8, 'credit 8', request_id => 'ticket 8')$$, 'KV001', NULL, 'with other tokens: an error');
SELECT throws_ok($$SELECT kavach_adjust('agt_a', -7, 'credit 9', request_id => 'ticket 8')$$, 'KV001', NULL, 'or with another reason');
SELECT throws_ok($$SELECT kavach_adjust('agt_a', -7, 'credit 9', request_id => '')$$, '22023', NULL, 'an empty one: an error');
SELECT isnt(kavach_adjust('agt_a', -7, 'credit 8', request_id => 'ticket 9'), :'id'::uuid, 'another one is another credit');
SELECT is(tokens_charged, 5::bigint, 'and to usage it says nothing') FROM kavach_record_usage('agt_a', 5, request_id => 'ticket 8');
SELECT throws_ok($$SELECT kavach_adjust('agt_ghost', 1, 'x')$$, '42704', NULL, 'an unknown agent: an error');
SELECT is(count(*), 10::bigint, 'a row each') FROM kavach.audit_log;

SELECT * FROM finish();
ROLLBACK;
