-- windows.sql: a window ends at its UTC turn, to the microsecond, and the next one starts empty.
BEGIN;
SELECT plan(62);
SET LOCAL timezone = 'Asia/Kathmandu';

-- The last instant of a window, and the first of the next.
CREATE FUNCTION pg_temp.turn(period text, turn timestamptz) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  agent text := kavach_create_agent(user_id => 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
  policy text := kavach_create_policy(agent_id => agent, limits => jsonb_build_object('max_tokens_cost_per_' || period, 10));
  a record;
BEGIN
  PERFORM set_config('kavach.clock', (turn - interval '1 microsecond')::text, true);
  SELECT * INTO a FROM kavach_authorize(agent, 'run', 'tool', tokens_cost => 10);
  RETURN NEXT is(row(a.code, a.tokens_remaining)::text, '(allowed,0)', format('%s to %s: the last instant', period, turn));
  SELECT * INTO a FROM kavach_authorize(agent, 'run', 'tool', tokens_cost => 1);
  RETURN NEXT is(row(a.code, a.retry_at)::text, row('budget_exceeded', turn)::text, 'is full until the turn');
  PERFORM set_config('kavach.clock', turn::text, true);
  SELECT * INTO a FROM kavach_authorize(agent, 'run', 'tool', tokens_cost => 4);
  RETURN NEXT is(row(a.code, a.tokens_remaining)::text, '(allowed,6)', 'and the next starts empty');
END $$;
SELECT pg_temp.turn('hour',  '2026-03-10 13:00Z');
SELECT pg_temp.turn('hour',  '2026-03-29 01:00Z');
SELECT pg_temp.turn('hour',  '2027-01-01 00:00Z');
SELECT pg_temp.turn('day',   '2026-03-11 00:00Z');
SELECT pg_temp.turn('day',   '2028-02-29 00:00Z');
SELECT pg_temp.turn('day',   '2028-03-01 00:00Z');
SELECT pg_temp.turn('day',   '2027-01-01 00:00Z');
SELECT pg_temp.turn('month', '2026-04-01 00:00Z');
SELECT pg_temp.turn('month', '2027-03-01 00:00Z');
SELECT pg_temp.turn('month', '2028-03-01 00:00Z');
SELECT pg_temp.turn('month', '2027-01-01 00:00Z');

-- The longer windows go on where a shorter one turns.
SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_a', limits =>
  '{"max_tokens_cost_per_hour": 10, "max_tokens_cost_per_day": 15, "max_tokens_cost_per_month": 18, "max_tokens_cost_total": 20}');
SET LOCAL kavach.clock = '2028-02-29 22:59:59+00';
SELECT is(row(code, tokens_remaining)::text, '(allowed,0)', 'the hour is full') FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 10);
SET LOCAL kavach.clock = '2028-02-29 23:00:00+00';
SELECT is(row(code, tokens_remaining)::text, '(allowed,0)', 'next hour: 5 are left of the day') FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 5);
SELECT is(row(code, retry_at)::text, row('budget_exceeded', timestamptz '2028-03-01Z')::text, 'the day is full')
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 1);
SET LOCAL kavach.clock = '2028-03-01 00:00:00+00';
SELECT is(row(code, tokens_remaining)::text, '(allowed,1)', 'next month: 5 are left in total') FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 4);
SELECT is(row(code, tokens_remaining, retry_at)::text, '(budget_exceeded,1,)', 'where a total refuses, waiting does not help')
  FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 2);
SET LOCAL kavach.clock = '2038-03-01 00:00:00+00';
SELECT is(row(code, tokens_remaining)::text, '(budget_exceeded,1)', 'not for ten years') FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 2);

-- A clock that steps back finds the old window as it was.
SELECT kavach_create_agent('agt_b', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_b', limits => '{"max_calls_per_hour": 2}');
SET LOCAL kavach.clock = '2026-06-01 10:59:00+00';
SELECT is(calls_remaining, 1::bigint, 'a call before the hour') FROM kavach_authorize('agt_b', 'run', 'x');
SET LOCAL kavach.clock = '2026-06-01 11:00:00+00';
SELECT is(calls_remaining, 1::bigint, 'one after it') FROM kavach_authorize('agt_b', 'run', 'x');
SET LOCAL kavach.clock = '2026-06-01 10:58:00+00';
SELECT is(calls_remaining, 0::bigint, 'and one before it again') FROM kavach_authorize('agt_b', 'run', 'x');
SELECT is(code, 'budget_exceeded', 'that hour is full') FROM kavach_authorize('agt_b', 'run', 'x');

-- What a settlement gives back counts in the windows of its authorization, and no later ones.
SELECT kavach_create_agent('agt_c', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_c', limits => '{"max_tokens_cost_per_month": 100}');
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-07-31 23:00:00+00';
SELECT audit_id AS id FROM kavach_authorize('agt_c', 'run', 'x', tokens_cost => 100) \gset
SET LOCAL kavach.clock = '2026-08-01 01:00:00+00';
SELECT is(row(tokens_charged, code, tokens_remaining)::text, '(-60,recorded,100)', 'settled in August: August has what it had')
  FROM kavach_record_usage('agt_c', 40, audit_id => :'id');
SET LOCAL kavach.clock = '2026-07-31 23:30:00+00';
SELECT is(row(code, tokens_remaining)::text, '(allowed,59)', 'July has it back, should the clock step back') FROM kavach_authorize('agt_c', 'run', 'x', tokens_cost => 1);
SELECT is(sum(tokens_cost), 101::numeric, 'the bill of July is what it was') FROM kavach_billing_report(2026, 7);
SELECT is(sum(tokens_cost), -60::numeric, 'a bill has it in the month in which it was recorded') FROM kavach_billing_report(2026, 8);
SELECT audit_id AS id FROM kavach_authorize('agt_c', 'run', 'x', tokens_cost => 50) \gset
SET LOCAL kavach.clock = '2026-08-01 02:00:00+00';
SELECT is(row(tokens_charged, code, tokens_remaining)::text, '(20,recorded,80)', 'what a settlement adds counts in the windows of now')
  FROM kavach_record_usage('agt_c', 70, audit_id => :'id');
SELECT is(used, 20::numeric, 'as budget_status has it') FROM kavach.budget_status WHERE subject = 'agt_c';

-- No room is banked by releasing late, for agent, user, tenant, each and all.
SELECT kavach_create_agent('agt_d', 'dan', 'dice', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_d', limits => '{"max_tokens_cost_per_hour": 1000, "max_tokens_cost_per_month": 5000}'),
       kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_hour": 1000}'),
       kavach_create_policy(tenant_id => 'dice', limits => '{"max_tokens_cost_per_day": 9500}'),
       kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_per_hour": 1100}');
CREATE FUNCTION pg_temp.bank(hours int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  turn timestamptz := '2026-10-10 00:00Z';
  id uuid;
BEGIN
  FOR n IN 1 .. hours LOOP
    PERFORM set_config('kavach.clock', (turn + n * interval '1 hour' - interval '1 second')::text, true);
    SELECT audit_id INTO id FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 950);
    PERFORM set_config('kavach.clock', (turn + n * interval '1 hour')::text, true);
    PERFORM kavach_record_usage('agt_d', 0, audit_id => id);
  END LOOP;
  RETURN sum(tokens_cost) FROM kavach.audit_log WHERE agent_id = 'agt_d';
END $$;
SELECT is(pg_temp.bank(10), 0::bigint, 'ten hours: each authorizes at its end, and releases in the next');
SELECT is(row(code, tokens_remaining, policy_id IS NULL)::text, '(allowed,0,t)', 'the eleventh has its own limit') FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 1000);
SELECT is(code, 'budget_exceeded', 'and no more') FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 1);
SELECT is(row(used, remaining)::text, '(1000,0)', format('%s per %s', scope, period)) FROM kavach.budget_status WHERE subject IN ('agt_d', 'dan') AND period = 'hour';
SELECT is(used, 1000::numeric, 'the month has no more than was kept') FROM kavach.budget_status WHERE subject = 'agt_d' AND period = 'month';
SELECT is(used, 1000::numeric, 'nor has the day') FROM kavach.budget_status WHERE subject = 'dice';
SET LOCAL kavach.clock = '2026-10-31 23:00:00+00';
SELECT is(count(*), 4::bigint, 'four hours of October, to its end')
  FROM (SELECT set_config('kavach.clock', (timestamptz '2026-10-31 19:30Z' + n * interval '1 hour')::text, true),
               (SELECT audit_id FROM kavach_authorize('agt_d', 'run', 'x' || n, tokens_cost => 950, request_id => 'late ' || n)) AS id FROM generate_series(1, 4) n OFFSET 0) AS c WHERE id IS NOT NULL;
SET LOCAL kavach.clock = '2026-11-01 00:00:00+00';
SELECT is(sum(tokens_charged), -3800::numeric, 'are all released in November')
  FROM generate_series(1, 4) n, kavach_record_usage('agt_d', 0, request_id => 'late ' || n);
SELECT is(row(code, tokens_granted)::text, '(allowed,1000)', 'whose first hour has its own limit') FROM kavach_authorize('agt_d', 'run', 'x', tokens_cost => 10000, min_tokens => 1);
SELECT is(row(used, remaining)::text, '(1000,4000)', 'and the month its own') FROM kavach.budget_status WHERE subject = 'agt_d' AND period = 'month';

-- More hours in one transaction than a subject has room for: others lose nothing to it.
CREATE TABLE pg_temp.before AS SELECT evictions, refusals FROM kavach.counter_stats;
SELECT throws_ok($$SELECT count(*) FROM generate_series(1, 600) n,
  LATERAL (SELECT set_config('kavach.clock', (timestamptz '2026-09-01 00:30Z' + n * interval '1 hour')::text, true) AS clock OFFSET 0) c,
  LATERAL kavach_authorize('agt_d', 'run', left(clock, 1))$$, '53400', 'open transactions call kavach at too many times', 'six hundred hours are too many');
SELECT is(s::text, b::text, 'and evict nobody') FROM pg_temp.before b, (SELECT evictions, refusals FROM kavach.counter_stats) s;

SELECT * FROM finish();
ROLLBACK;
