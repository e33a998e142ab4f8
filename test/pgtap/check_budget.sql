-- check_budget.sql: advice, which decides, charges and writes nothing.
BEGIN;
SELECT plan(19);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT is(row(allowed, code, policy_id, tokens_remaining, calls_remaining, retry_at)::text, '(t,allowed,,,,)', 'no policy: nothing limits')
  FROM kavach_check_budget('agt_a', 1000000);
SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_per_day": 100, "max_calls_per_hour": 3}', action => 'throttle') AS p,
       kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_total": 60}', action => 'warn') AS warn,
       kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 1000}') AS wide \gset
SELECT is(row(allowed, code, policy_id, tokens_remaining, calls_remaining, retry_at)::text, '(t,allowed,,100,3,)', 'as things stand, not after the charge')
  FROM kavach_check_budget('agt_a', 60);
SELECT is(row(allowed, code, policy_id, tokens_remaining, calls_remaining, retry_at)::text, format('(t,budget_warning,%s,100,3,)', :'warn'), 'a warning')
  FROM kavach_check_budget('agt_a', 61);
SELECT is(row(allowed, code, policy_id, tokens_remaining, calls_remaining, retry_at)::text, format('(f,budget_exceeded,%s,100,3,)', :'p'), 'a cost that never fits')
  FROM kavach_check_budget('agt_a', 101);
SELECT is(count(*), 0::bigint, 'nothing is written') FROM kavach.audit_log;
SELECT code FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 50);
SELECT is(row(allowed, code, policy_id, tokens_remaining, calls_remaining, retry_at)::text, '(t,allowed,,50,2,)', 'no cost') FROM kavach_check_budget('agt_a');
SELECT is(row(allowed, code, tokens_remaining)::text, '(t,allowed,50)', 'a cost of 0') FROM kavach_check_budget('agt_a', 0);
SELECT is(row(allowed, code, policy_id, tokens_remaining, calls_remaining, retry_at)::text, format('(f,budget_exceeded,%s,50,2,"2026-03-11 00:00:00+00")', :'p'), 'more than is left')
  FROM kavach_check_budget('agt_a', 51);
SELECT is(row(allowed, code, policy_id, tokens_remaining)::text, format('(t,budget_warning,%s,50)', :'warn'), 'an exact fit') FROM kavach_check_budget('agt_a', 50);
SELECT isnt(coalesce(reason, ''), '', 'with a reason') FROM kavach_check_budget('agt_a', 51);
SELECT (kavach_authorize('agt_a', 'run', 'x')).code FROM generate_series(1, 2);
SELECT is(row(allowed, code, policy_id, tokens_remaining, calls_remaining, retry_at)::text, format('(f,budget_exceeded,%s,50,0,"2026-03-10 13:00:00+00")', :'p'), 'no call is left')
  FROM kavach_check_budget('agt_a', 1);
SET LOCAL kavach.clock = '2026-03-10 13:00:00+00';
SELECT is(row(allowed, tokens_remaining, calls_remaining)::text, '(t,50,3)', 'in the next hour three are') FROM kavach_check_budget('agt_a', 1);
SELECT kavach_record_usage('agt_a', 75);
SELECT is(row(allowed, code, tokens_remaining)::text, '(f,budget_exceeded,0)', 'past the limit nothing is left') FROM kavach_check_budget('agt_a');
SELECT kavach_adjust('agt_a', -500, 'credit');
SELECT is(row(allowed, tokens_remaining)::text, '(t,475)', 'below zero more than the limit is') FROM kavach_check_budget('agt_a', 475);

-- What it says is what authorize does.
SELECT is((SELECT row(allowed, code, policy_id)::text FROM kavach_check_budget('agt_a', 476)),
          (SELECT row(allowed, code, policy_id)::text FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 476)), 'authorize decides the same');

-- It writes nothing, so a read-only transaction may ask; the other two verbs are errors there.
SAVEPOINT s;
SET LOCAL transaction_read_only = on;
SELECT row(allowed, tokens_remaining)::text AS told FROM kavach_check_budget('agt_a', 475) \gset
ROLLBACK TO s;
SELECT is(:'told'::text, '(t,475)', 'in a read-only transaction');
CREATE FUNCTION pg_temp.read_only(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('transaction_read_only', 'on', true);
  EXECUTE call;
  RAISE SQLSTATE 'ZZ001';
EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
SELECT is(pg_temp.read_only($$SELECT kavach_authorize('agt_a', 'run', 'x')$$), '25006', 'authorize refuses there');
SELECT is(pg_temp.read_only($$SELECT kavach_record_usage('agt_a', 1)$$), '25006', 'record_usage too');
SELECT is(pg_temp.read_only($$SELECT * FROM kavach_billing_report(2026, 3)$$), 'ZZ001', 'reports answer');

SELECT * FROM finish();
ROLLBACK;
