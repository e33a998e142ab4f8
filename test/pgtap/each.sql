-- each.sql: one limit for every subject separately, and to which limits it yields; all_agents as one pool.
BEGIN;
SELECT plan(33);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a1', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_a2', 'ann', 'brix', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_b1', 'bob', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_c1', 'cyd', NULL,   permissions => '[{"resource": "*", "actions": ["*"]}]');
CREATE FUNCTION pg_temp.ask(agent text, tokens bigint DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', code, tokens_remaining, calls_remaining) FROM kavach_authorize(agent, 'run', 'x', tokens_cost => tokens)
$$;

-- each user
SELECT kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_month": 10}') AS p \gset
SELECT is(pg_temp.ask('agt_a1', 6), 'allowed 4', 'one user');
SELECT is(pg_temp.ask('agt_a2', 6), 'budget_exceeded 4', 'with all the user''s agents');
SELECT is(pg_temp.ask('agt_b1', 10), 'allowed 0', 'another user has a limit of their own');
SELECT kavach_create_agent('agt_new', 'new', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT is(pg_temp.ask('agt_new', 10), 'allowed 0', 'so has one yet to come');
SELECT is(pg_temp.ask('agt_new', 1), 'budget_exceeded 0', 'the same limit');
SELECT is(policy_id, :'p', 'and the policy is named') FROM kavach_authorize('agt_new', 'run', 'x');
SELECT results_eq(format($$SELECT scope, subject, each FROM kavach.budget_policy WHERE policy_id = %L$$, :'p'),
                  $$VALUES ('user', NULL::text, true)$$, 'stored as a policy without subject');

-- It yields to the same measure and window of an enabled policy that names the user, not to others.
SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_per_day": 100}') AS day \gset
SELECT is(pg_temp.ask('agt_a1', 5), 'budget_exceeded 4', 'not to another window');
SELECT kavach_drop_policy(:'day');
SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_calls_per_month": 100}') AS calls \gset
SELECT is(pg_temp.ask('agt_a1', 5), 'budget_exceeded 4 99', 'not to another measure');
SELECT kavach_drop_policy(:'calls');
SELECT kavach_create_policy(agent_id => 'agt_a1', limits => '{"max_tokens_cost_per_month": 100}') AS agent \gset
SELECT is(pg_temp.ask('agt_a1', 5), 'budget_exceeded 4', 'not to another scope');
SELECT kavach_drop_policy(:'agent');
SELECT kavach_create_policy(user_id => 'bob', limits => '{"max_tokens_cost_per_month": 100}') AS other \gset
SELECT is(pg_temp.ask('agt_a1', 5), 'budget_exceeded 4', 'not to another user''s');
SELECT is(pg_temp.ask('agt_b1', 5), 'allowed 85', 'who has what that policy says');
SELECT kavach_drop_policy(:'other');
SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_per_month": 20}', action => 'warn') AS named \gset
SELECT is(pg_temp.ask('agt_a1', 5), 'budget_exceeded 4', 'not to a warn');
SELECT kavach_update_policy(:'named', action => 'throttle');
SELECT is(pg_temp.ask('agt_a1', 5), 'allowed 9', 'a block yields to a throttle');
SELECT kavach_update_policy(:'named', enabled => false);
SELECT is(pg_temp.ask('agt_a1', 1), 'budget_exceeded 0', 'while that is enabled');
SELECT kavach_update_policy(:'named', enabled => true);
SELECT is(pg_temp.ask('agt_a2', 9), 'allowed 0', 'what was used before counts there too');
SELECT is(pg_temp.ask('agt_a1', 1), 'budget_exceeded 0', 'to the last token');
SELECT kavach_drop_policy(:'named');
SELECT kavach_drop_policy(:'p');

-- A warn yields to a warn only.
SELECT kavach_create_policy(each => 'agent', limits => '{"max_calls_total": 1}', action => 'warn') AS each_warn,
       kavach_create_policy(agent_id => 'agt_c1', limits => '{"max_calls_total": 10}', action => 'block') AS block \gset
SELECT is(pg_temp.ask('agt_c1'), 'allowed 9', 'the first call');
SELECT is(pg_temp.ask('agt_c1'), 'budget_warning 8', 'an `each` warn stands beside a block that names the agent');
SELECT kavach_create_policy(agent_id => 'agt_c1', limits => '{"max_calls_total": 3}', action => 'warn') AS warn \gset
SELECT is(pg_temp.ask('agt_c1'), 'allowed 7', 'and yields to a warn that does');
SELECT is(policy_id, :'warn', 'which warns in its time') FROM kavach_authorize('agt_c1', 'run', 'x');
SELECT kavach_drop_policy(:'each_warn'), kavach_drop_policy(:'block'), kavach_drop_policy(:'warn');

-- each tenant; an agent without tenant has no such limit
SET LOCAL kavach.clock = '2026-04-10 12:34:56+00';
SELECT kavach_create_policy(each => 'tenant', limits => '{"max_calls_per_day": 1}') AS p \gset
SELECT is(pg_temp.ask('agt_a1'), 'allowed 0', 'one tenant');
SELECT is(pg_temp.ask('agt_b1'), 'budget_exceeded 0', 'with all its users');
SELECT is(pg_temp.ask('agt_a2'), 'allowed 0', 'another tenant');
SELECT is(pg_temp.ask('agt_c1'), 'allowed', 'no tenant');
SELECT is(pg_temp.ask('agt_c1'), 'allowed', 'no limit');
SELECT kavach_drop_policy(:'p');

-- each agent
SELECT kavach_create_policy(each => 'agent', limits => '{"max_tokens_cost_per_hour": 5}') AS p \gset
SELECT is(pg_temp.ask('agt_a1', 5), 'allowed 0', 'one agent');
SELECT is(pg_temp.ask('agt_a2', 5), 'allowed 0', 'another of the same user');
SELECT is(pg_temp.ask('agt_a1', 1), 'budget_exceeded 0', 'each its own');
SELECT kavach_drop_policy(:'p');

-- all agents together
SELECT kavach_create_policy(all_agents => true, limits => jsonb_build_object('max_tokens_cost_total',
         (SELECT sum(tokens_cost) FROM kavach.audit_log) + 10)) AS p \gset
SELECT is(pg_temp.ask('agt_a1', 5), 'allowed 5', 'one pool');
SELECT is(pg_temp.ask('agt_c1', 4), 'allowed 1', 'for everybody');
SELECT is(pg_temp.ask('agt_b1', 2), 'budget_exceeded 1', 'until it is used up');
SELECT results_eq(format($$SELECT scope, subject, each FROM kavach.budget_policy WHERE policy_id = %L$$, :'p'),
                  $$VALUES ('all', NULL::text, false)$$, 'stored without subject');

SELECT * FROM finish();
ROLLBACK;
