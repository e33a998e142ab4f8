-- clock.sql: kavach.clock stops the time at an instant for everything that depends on it.
BEGIN;
SELECT plan(25);
SET LOCAL timezone = 'Asia/Tokyo';

SELECT throws_ok(format('SET LOCAL kavach.clock = %L', t), '22023', NULL, t || ' is no clock')
  FROM unnest('{soon,infinity,-infinity,1969-12-31 23:59:59Z,99999-01-01Z,2026-13-01Z,2026-02-30Z,12:00}'::text[]) AS t;
SELECT throws_ok('SET LOCAL kavach.clok = 1', '42602', NULL, 'a mistyped setting is refused');

SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
CREATE FUNCTION pg_temp.at(clock text) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE a record;
BEGIN
  PERFORM set_config('kavach.clock', clock, true);
  SELECT * INTO a FROM kavach_authorize('agt_a', 'run', 'x');
  RETURN (SELECT ts FROM kavach.audit_log WHERE id = a.audit_id);
END $$;
SELECT is(pg_temp.at(clock), instant, clock)
  FROM (VALUES ('2026-03-10 12:00:00Z', timestamptz '2026-03-10 12:00Z'), ('2026-03-10 12:00:00.000001+02', '2026-03-10 10:00:00.000001Z'),
               ('2026-03-10 12:00:00', '2026-03-10 03:00Z'), ('2026-03-10T12:00:00Z', '2026-03-10 12:00Z'), ('2026-03-10 12:00:00 Europe/Berlin', '2026-03-10 11:00Z'),
               ('1970-01-01Z', '1970-01-01Z'), ('9998-12-31 23:59:59Z', '9998-12-31 23:59:59Z')) AS t (clock, instant);
-- It stands still, and a TimeZone set later does not move it.
SELECT set_config('kavach.clock', '2026-03-10 12:00:00', true);
SET LOCAL timezone = 'UTC';
SELECT kavach_create_agent('agt_b', 'ann');
SELECT is(created_at, '2026-03-10 03:00Z', 'the clock is the instant that was set') FROM kavach.agent WHERE agent_id = 'agt_b';


-- So it does for parallel workers, which are given it before they know the session's TimeZone.
CREATE FUNCTION pg_temp.in_workers(clock text) RETURNS timestamptz LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('kavach.clock', clock, true);
  RETURN (SELECT max(kavach.clock_now()) FROM pg_attribute);
END $$;
SET LOCAL timezone = 'Asia/Tokyo';
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SET LOCAL parallel_leader_participation = off;
SELECT is(pg_temp.in_workers('2026-03-10 12:00:00.000001'), '2026-03-10 03:00:00.000001Z', 'an instant without a zone');
SELECT is(pg_temp.in_workers('2026-03-10 12:00:00Z'), '2026-03-10 12:00Z', 'an instant with an abbreviation');
SELECT is(pg_temp.in_workers('2026-03-10 12:00:00 Europe/Berlin'), '2026-03-10 11:00Z', 'an instant with a zone''s name');
SELECT is(current_setting('kavach.clock'), '2026-03-10 11:00:00+00', 'the setting shows the instant in UTC');
RESET parallel_setup_cost;
SET LOCAL timezone = 'UTC';

-- What depends on time follows it: expiry, windows, status.
SELECT kavach_create_agent('agt_c', 'cyd', permissions => '[{"resource": "*", "actions": ["*"]}]', expires_at => '2030-01-01Z'),
       kavach_create_policy(user_id => 'cyd', limits => '{"max_calls_per_day": 1}');
SET LOCAL kavach.clock = '2029-12-31 12:00:00+00';
SELECT is(row(code, calls_remaining)::text, '(allowed,0)', 'a call in 2029') FROM kavach_authorize('agt_c', 'run', 'x');
SELECT results_eq($$SELECT period_start, used FROM kavach.budget_status WHERE subject = 'cyd'$$, $$VALUES (timestamptz '2029-12-31Z', 1::numeric)$$, 'in its window');
SET LOCAL kavach.clock = '2030-01-01 00:00:00+00';
SELECT is(code, 'agent_expired', 'a day later it has expired') FROM kavach_authorize('agt_c', 'run', 'x');
SELECT results_eq($$SELECT period_start, used FROM kavach.budget_status WHERE subject = 'cyd'$$, $$VALUES (timestamptz '2030-01-01Z', 0::numeric)$$, 'and the next window is open');

SELECT * FROM finish();
ROLLBACK;
