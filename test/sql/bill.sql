-- bill.sql: a month of two tenants, as each report shows it.
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET kavach.clock = '2026-04-01 00:00:00+00';
SELECT kavach_create_agent('agt_b1', 'bea', 'north', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_agent('agt_b2', 'bea', 'south', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_agent('agt_b3', 'ben', 'south', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(tenant_id => 'south', limits => '{"max_tokens_cost_per_month": 500}') AS pol \gset

SELECT code FROM kavach_authorize('agt_b1', 'run', 'x', 100, request_id => 'b1');
SELECT code FROM kavach_authorize('agt_b3', 'run', 'x', 450, request_id => 'b3');
SELECT code FROM kavach_authorize('agt_b2', 'run', 'x', 60);
SELECT code FROM kavach_authorize('agt_bnone', 'run', 'x', 60);
SET kavach.clock = '2026-04-15 23:30:00+00';
SELECT tokens_charged FROM kavach_record_usage('agt_b3', 400, request_id => 'b3');
SELECT code FROM kavach_authorize('agt_b2', 'run', 'x', 60);
SELECT code FROM kavach_authorize('agt_b1', 'run', 'x');
SELECT kavach_update_agent('agt_b1', '{"user_id": "ben"}');
SET kavach.clock = '2026-04-16 00:30:00+00';
SELECT tokens_charged FROM kavach_record_usage('agt_b1', 130, request_id => 'b1');
SELECT code FROM kavach_record_usage('agt_b1', 7);
SELECT kavach_adjust('agt_b2', -20, 'goodwill') IS NOT NULL AS adjusted;
SET kavach.clock = '2026-05-01 00:00:00+00';
SELECT code FROM kavach_authorize('agt_b3', 'run', 'x', 1000);
SELECT tokens_charged FROM kavach_record_usage('agt_b3', 1);

SELECT * FROM kavach_cost_by_agent('2026-04-01Z', '2026-05-01Z') WHERE agent_id LIKE 'agt_b%' ORDER BY agent_id;
SELECT * FROM kavach_cost_by_user('2026-04-01Z', '2026-05-01Z') WHERE user_id LIKE 'be%' ORDER BY user_id;
SELECT * FROM kavach_cost_by_day(NULL, '2026-04-01Z', '2026-05-01Z') ORDER BY day;
SELECT * FROM kavach_cost_by_day('agt_b3', '2026-04-01Z', NULL) ORDER BY day;
SELECT * FROM kavach_billing_report(2026, 4) ORDER BY tenant_id, user_id;
SELECT * FROM kavach_billing_report(2026, 5) ORDER BY tenant_id, user_id;
SELECT * FROM kavach_billing_report(2027, 4);
SELECT * FROM kavach.usage_by_agent WHERE agent_id LIKE 'agt_b%' ORDER BY agent_id;
SELECT agent_id, tokens_cost FROM kavach.unsettled WHERE agent_id LIKE 'agt_b%' ORDER BY agent_id;
SELECT scope, subject, measure, period, period_start, period_end, amount, used, remaining, action, status
  FROM kavach.budget_status WHERE policy_id = :'pol';
SET kavach.clock = '2026-04-20 00:00:00+00';
SELECT period_start, amount, used, remaining, status FROM kavach.budget_status WHERE policy_id = :'pol';

-- The same days and months elsewhere on earth.
SET timezone = 'Pacific/Kiritimati';
SELECT * FROM kavach_cost_by_day(NULL, '2026-04-01Z', '2026-05-01Z') ORDER BY day;
SELECT * FROM kavach_billing_report(2026, 4) ORDER BY tenant_id, user_id;
SELECT kavach_drop_policy(:'pol');
