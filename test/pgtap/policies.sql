-- policies.sql: policies are made, merged, switched off and dropped.
BEGIN;
SELECT plan(24);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
CREATE FUNCTION pg_temp.limits(policy text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(concat_ws(' ', measure, period, amount), ', ' ORDER BY measure, period) FROM kavach.budget_limit WHERE policy_id = policy
$$;

SELECT kavach_create_policy(agent_id => 'agt_a', limits =>
  '{"max_tokens_cost_per_hour": 1, "max_tokens_cost_per_day": 2, "max_tokens_cost_per_month": 3, "max_tokens_cost_total": 4,
    "max_calls_per_hour": 5, "max_calls_per_day": 6, "max_calls_per_month": 7, "max_calls_total": 8}') AS p \gset
SELECT matches(:'p'::text, '^pol_[0-9A-Za-z_-]{8,}$', 'a policy_id is made');
SELECT is(pg_temp.limits(:'p'), 'calls day 6, calls hour 5, calls month 7, calls total 8, tokens day 2, tokens hour 1, tokens month 3, tokens total 4',
          'a limit per key');
SELECT results_eq(format('SELECT scope, subject, each, action, enabled, created_at FROM kavach.budget_policy WHERE policy_id = %L', :'p'),
                  $$VALUES ('agent', 'agt_a', false, 'block', true, timestamptz '2026-03-10 12:34:56Z')$$, 'block and enabled unless told otherwise');
SELECT results_eq(
  format('SELECT scope, subject, each, action FROM kavach.budget_policy WHERE policy_id IN (%L, %L) ORDER BY scope',
         kavach_create_policy(user_id => 'ann', limits => '{"max_calls_total": 100}', action => 'warn'),
         kavach_create_policy(tenant_id => 'acme', limits => '{"max_calls_total": 100}', action => 'throttle')),
  $$VALUES ('tenant', 'acme', false, 'throttle'), ('user', 'ann', false, 'warn')$$, 'users and tenants need no registration');

-- update_policy merges
SELECT is(kavach_update_policy(:'p', '{"max_tokens_cost_per_hour": 11, "max_tokens_cost_total": null, "max_calls_per_hour": null, "max_calls_per_day": null}'),
          true, 'update_policy says that it changed something');
SELECT is(pg_temp.limits(:'p'), 'calls month 7, calls total 8, tokens day 2, tokens hour 11, tokens month 3', 'a null removes, a number sets, the others stay');
SELECT is(kavach_update_policy(:'p', '{"max_tokens_cost_total": 40}'), true, 'a limit can be added');
SELECT is(pg_temp.limits(:'p'), 'calls month 7, calls total 8, tokens day 2, tokens hour 11, tokens month 3, tokens total 40', 'and is');
SELECT is(kavach_update_policy(:'p', '{"max_tokens_cost_total": 40, "max_calls_per_hour": null}', 'block', true), false, 'what is so already: false');
SELECT throws_ok(format('SELECT kavach_update_policy(%L, %L)', :'p',
  '{"max_tokens_cost_per_hour": null, "max_tokens_cost_per_day": null, "max_tokens_cost_per_month": null, "max_tokens_cost_total": null, "max_calls_per_month": null, "max_calls_total": null}'),
  '22023', NULL, 'the last limit cannot be removed');
SELECT is(pg_temp.limits(:'p'), 'calls month 7, calls total 8, tokens day 2, tokens hour 11, tokens month 3, tokens total 40', 'and none has been');
SELECT is(kavach_update_policy(:'p', action => 'throttle', enabled => false), true, 'action and enabled change too');
SELECT results_eq(format('SELECT action, enabled FROM kavach.budget_policy WHERE policy_id = %L', :'p'),
                  $$VALUES ('throttle', false)$$, 'as told');
SELECT is(kavach_update_policy(:'p', enabled => true), true, 'one without the other');
SELECT results_eq(format('SELECT action, enabled FROM kavach.budget_policy WHERE policy_id = %L', :'p'),
                  $$VALUES ('throttle', true)$$, 'as well');

-- and the next call obeys
SELECT is(tokens_remaining, 2::bigint, 'the tightest of its limits') FROM kavach_check_budget('agt_a');
SELECT kavach_update_policy(:'p', '{"max_tokens_cost_per_day": 20}');
SELECT is(tokens_remaining, 3::bigint, 'raised, another is the tightest') FROM kavach_check_budget('agt_a');
SELECT kavach_update_policy(:'p', '{"max_tokens_cost_per_month": null}');
SELECT is(tokens_remaining, 11::bigint, 'removed, yet another') FROM kavach_check_budget('agt_a');

SELECT is(kavach_drop_policy(:'p'), true, 'drop_policy drops');
SELECT is(kavach_drop_policy(:'p'), false, 'once');
SELECT is(count(*), 0::bigint, 'with its limits') FROM kavach.budget_limit WHERE policy_id = :'p';
SELECT is(row(tokens_remaining, calls_remaining)::text, '(,)', 'and they are gone for the next call') FROM kavach_check_budget('agt_a');

-- The errors that help: the valid keys, and why a NULL is not everybody.
SELECT throws_like($$SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens": 1}')$$, '%max_tokens%', 'an unknown key is named');
CREATE FUNCTION pg_temp.detail(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE m text; d text; h text;
BEGIN
  EXECUTE call;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
  RETURN concat_ws(' ', m, d, h);
END $$;
SELECT matches(pg_temp.detail($$SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens": 1}')$$),
               'max_.*tokens_cost.*per_hour.*per_day.*per_month.*total', 'and the valid ones are listed');

SELECT * FROM finish();
ROLLBACK;
