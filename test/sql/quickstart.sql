-- quickstart.sql: the story in a few statements: an agent, its budget, calls that fit, one that does not, the bill.
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET kavach.clock = '2026-01-10 09:00:00+00';

SELECT kavach_create_agent('agt_quick', 'quinn', 'quickco', 'Research assistant',
         permissions => '[{"resource": "mcp:openai:*", "actions": ["execute"]}]');
SELECT kavach_create_policy(user_id => 'quinn', limits => '{"max_tokens_cost_per_month": 1000}') AS pol \gset

-- Authorize, call the model, settle.
SELECT allowed, code, reason, tokens_granted, tokens_remaining, calls_remaining, retry_at
  FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', tokens_cost => 600, request_id => 'chat 1');
SELECT tokens_charged, code, tokens_remaining FROM kavach_record_usage('agt_quick', 450, request_id => 'chat 1');
-- The retry of a call charges nothing.
SELECT allowed, code, tokens_granted, tokens_remaining
  FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', tokens_cost => 600, request_id => 'chat 1');
SELECT tokens_charged, code, tokens_remaining FROM kavach_record_usage('agt_quick', 450, request_id => 'chat 1');

-- Too much for what is left; less will do.
SELECT allowed, code, replace(reason, policy_id, 'pol_...') AS reason, policy_id = :'pol' AS by_it, tokens_remaining, retry_at
  FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', tokens_cost => 600);
SELECT allowed, code, reason, tokens_granted, tokens_remaining
  FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', tokens_cost => 600, min_tokens => 100);
SELECT allowed, code, tokens_remaining, retry_at FROM kavach_check_budget('agt_quick', 1);

-- The call failed: release it.
SELECT tokens_charged FROM kavach_record_usage('agt_quick', 0,
  (SELECT id FROM kavach_query_audit('agt_quick', result => 'allowed', max_rows => 1)));

-- What was spent.
SELECT * FROM kavach_cost_by_agent('2026-01-01Z', '2026-02-01Z') WHERE agent_id = 'agt_quick';
SELECT * FROM kavach_cost_by_day('agt_quick', '2026-01-01Z', '2026-02-01Z');
SELECT kind, action, resource, result, code, tokens_requested, min_tokens, tokens_released, tokens_cost, request_id
  FROM kavach_query_audit('agt_quick');
SELECT scope, subject, measure, period, period_start, period_end, amount, used, remaining, action, status
  FROM kavach.budget_status WHERE policy_id = :'pol';

-- The forms that drivers use.
SELECT (kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat')).allowed;
SELECT to_jsonb(kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', 10)) - '{audit_id}'::text[];

-- Settling in the transaction of the authorization means that the model ran before the decision was committed.
BEGIN;
SELECT audit_id FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', 10) \gset
SELECT tokens_charged, code FROM kavach_record_usage('agt_quick', 5, :'audit_id');
COMMIT;
BEGIN;
SELECT code FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', 10, request_id => 'chat 2');
SELECT tokens_charged, code FROM kavach_record_usage('agt_quick', 5, request_id => 'chat 2');
ROLLBACK;
-- Rolled back, nothing has happened; in transactions of their own there is nothing to warn of.
SELECT code FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat', 10, request_id => 'chat 2');
SELECT tokens_charged, code FROM kavach_record_usage('agt_quick', 5, request_id => 'chat 2');

SELECT kavach_revoke_agent('agt_quick', 'end of the story');
SELECT allowed, code, reason FROM kavach_authorize('agt_quick', 'execute', 'mcp:openai:chat');
SELECT kavach_drop_policy(:'pol');
