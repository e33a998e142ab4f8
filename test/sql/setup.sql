-- setup.sql: what a set-up file says when it is run, run again, and run with changes.
SET kavach.clock = '2026-01-10 09:00:00+00';
\set SHOW_CONTEXT never
\set setup 'SELECT kavach_create_agent(''agt_mailer'', user_id => ''bob'', tenant_id => ''acme'', replace => true, permissions => ''[{"resource": "smtp:*:send", "actions": ["send"]}]''); SELECT kavach_create_agent(''agt_helper'', user_id => ''ann'', replace => true); SELECT kavach_grant_permission(''agt_helper'', ''mcp:openai:*'', ''{execute}'') > 0 AS granted; SELECT kavach_create_policy(policy_id => ''pol_bob'', user_id => ''bob'', replace => true, limits => ''{"max_tokens_cost_per_month": 5000}'');'
:setup
:setup
SELECT kavach_create_agent('agt_mailer', user_id => 'bob', tenant_id => 'acme', replace => true, permissions => '[{"resource": "smtp:**", "actions": ["send"]}]');
SELECT kavach_create_policy(policy_id => 'pol_bob', user_id => 'bob', replace => true, action => 'warn', limits => '{"max_tokens_cost_per_month": 5000}');
SELECT agent_id, resource, actions FROM kavach.permissions WHERE agent_id IN ('agt_mailer', 'agt_helper') ORDER BY 1;
SELECT policy_id, scope, subject, action, limits FROM kavach.policies WHERE policy_id = 'pol_bob';

-- Without replace, what is there is an error.
SELECT kavach_create_agent('agt_mailer', user_id => 'bob');
SELECT kavach_create_policy(policy_id => 'pol_bob', user_id => 'bob', limits => '{"max_calls_total": 9}');
SELECT kavach_create_policy(policy_id => 'bob', user_id => 'bob', limits => '{"max_calls_total": 9}');
SELECT kavach_create_policy(user_id => 'bob', limits => '{"max_calls_total": 9}', replace => true);

SELECT kavach_drop_agent('agt_mailer'), kavach_drop_agent('agt_helper'), kavach_drop_agent('agt_helper'), kavach_drop_policy('pol_bob');
