-- reasons.sql: a refusal says one cause, with the values that make it one, and in a bounded length.
BEGIN;
SELECT plan(50);
SET LOCAL timezone = 'Asia/Tokyo';
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';

-- The answer to a call of an agent with these permissions; permissions are called N in it.
CREATE FUNCTION pg_temp.ask(constraints jsonb, arguments jsonb DEFAULT NULL, ip inet DEFAULT NULL)
RETURNS TABLE (code text, reason text, retry_at timestamptz) LANGUAGE plpgsql AS $$
DECLARE agent text := kavach_create_agent(user_id => 'ann');
BEGIN
  PERFORM kavach_grant_permission(agent, '*', '{run}', c)
     FROM jsonb_array_elements(CASE jsonb_typeof(ask.constraints) WHEN 'array' THEN ask.constraints ELSE jsonb_build_array(ask.constraints) END) AS c;
  RETURN QUERY SELECT a.code, regexp_replace(a.reason, '^permission [0-9]+', 'permission N'), a.retry_at
                 FROM kavach_authorize(agent, 'run', 'tool', arguments => ask.arguments, ip => ask.ip) AS a;
END $$;

-- Arguments: which one, by its jsonpath, its value and the patterns; or that there are none.
SELECT is((pg_temp.ask(jsonb_build_object('allowed_arg_patterns', patterns::jsonb), arguments::jsonb)).reason, 'permission N: ' || reason, reason)
  FROM (VALUES
    ('["/tmp/*"]',           '{"path": "/etc/passwd"}',                     'the argument $.path is "/etc/passwd" and matches none of allowed_arg_patterns ("/tmp/*")'),
    ('["/tmp/*", "/var/*"]', '{"a": "/tmp/a", "b": {"c2": ["/var/x", {"d": "/etc/b"}]}}', 'the argument $.b.c2[1].d is "/etc/b" and matches none of allowed_arg_patterns ("/tmp/*", "/var/*")'),
    ('["/tmp/*"]',           '{"a": [["/tmp/a"], [1, "/tmp/b", "x"]]}',      'the argument $.a[1][2] is "x" and matches none of allowed_arg_patterns ("/tmp/*")'),
    ('["a"]',                '{"reply-to": "b"}',                            'the argument $."reply-to" is "b" and matches none of allowed_arg_patterns ("a")'),
    ('["a"]',                '{"2": "b"}',                                   'the argument $."2" is "b" and matches none of allowed_arg_patterns ("a")'),
    ('["a"]',                '{"": "b"}',                                    'the argument $."" is "b" and matches none of allowed_arg_patterns ("a")'),
    ('["a"]',                '{"k\"\n": "b\n\"c"}',                          'the argument $."k\"\n" is "b\n\"c" and matches none of allowed_arg_patterns ("a")'),
    ('["a"]',                '{"k": ""}',                                    'the argument $.k is "" and matches none of allowed_arg_patterns ("a")'),
    ('["/tmp/*"]',           NULL,                                           'the call has no arguments, and allowed_arg_patterns ("/tmp/*") asks for some'),
    ('["/tmp/*"]',           '{}',                                           'the call has no arguments, and allowed_arg_patterns ("/tmp/*") asks for some'),
    ('["1","2","3","4","5","6","7","8"]',           '{"k": "x"}', 'the argument $.k is "x" and matches none of allowed_arg_patterns ("1", "2", "3", "4", "5", "6", "7", "8")'),
    ('["1","2","3","4","5","6","7","8","9","10"]',  '{"k": "x"}', 'the argument $.k is "x" and matches none of allowed_arg_patterns ("1", "2", "3", "4", "5", "6", "7", "8" and 2 more)')
  ) AS t (patterns, arguments, reason);
SELECT is((pg_temp.ask('{"allowed_arg_patterns": ["a"]}', jsonb_build_object('k', repeat('v', 100)))).reason,
          format('permission N: the argument $.k is "%s" and matches none of allowed_arg_patterns ("a")', repeat('v', 100)), 'a value of a hundred bytes is shown');
SELECT is((pg_temp.ask('{"allowed_arg_patterns": ["a"]}', jsonb_build_object('k', repeat('v', 101)))).reason,
          format('permission N: the argument $.k is "%s"... and matches none of allowed_arg_patterns ("a")', repeat('v', 100)), 'of a longer one the beginning');
SELECT is((pg_temp.ask('{"allowed_arg_patterns": ["a"]}', jsonb_build_object('k', 'x' || repeat('é', 100)))).reason,
          format('permission N: the argument $.k is "x%s"... and matches none of allowed_arg_patterns ("a")', repeat('é', 49)), 'cut at a character');
SELECT is(jsonb_path_query_first('{"to": [{"reply-to": "eve"}]}', substring(reason FROM 'the argument (\S+)')::jsonpath), '"eve"', 'the path finds the argument')
  FROM pg_temp.ask('{"allowed_arg_patterns": ["a"]}', '{"to": [{"reply-to": "eve"}]}');

-- Addresses: which, and the networks; or that none was given.
SELECT is((pg_temp.ask(jsonb_build_object('ip_allowlist', networks::jsonb), ip => ip::inet)).reason, 'permission N: ' || reason, reason)
  FROM (VALUES
    ('["10.0.0.0/8"]',                   '192.0.2.1',        'the ip 192.0.2.1 is in none of the networks of ip_allowlist ("10.0.0.0/8")'),
    ('["10.0.0.0/8", "2001:db8::/32"]',  '2001:db9::1',      'the ip 2001:db9::1 is in none of the networks of ip_allowlist ("10.0.0.0/8", "2001:db8::/32")'),
    ('["10.0.0.0/8"]',                   '::ffff:192.0.2.1', 'the ip ::ffff:192.0.2.1 is in none of the networks of ip_allowlist ("10.0.0.0/8")'),
    ('["10.0.0.0/8"]',                   NULL,               'the call gives no ip, and ip_allowlist ("10.0.0.0/8") asks for one')
  ) AS t (networks, ip, reason);

-- Times: the window, and when it opens next, which is retry_at.
SELECT is(row(a.reason, a.retry_at)::text,
          row(format('permission N: 2026-03-10T12:00:00Z is outside of time_window (%s to %s UTC), which opens next at %s', since, until, opens),
              opens::timestamptz)::text, format('%s to %s', since, until))
  FROM (VALUES
    ('14:00', '18:00', '2026-03-10T14:00:00Z'), ('09:00', '12:00', '2026-03-11T09:00:00Z'), ('22:00', '06:00', '2026-03-10T22:00:00Z'),
    ('12:00:01', '24:00', '2026-03-10T12:00:01Z'), ('00:00', '01:00', '2026-03-11T00:00:00Z')) AS t (since, until, opens),
       pg_temp.ask(jsonb_build_object('time_window', jsonb_build_object('start', since, 'end', until))) AS a;
SELECT set_config('kavach.clock', '2026-12-31 23:59:59.5+00', true);
SELECT is(retry_at, '2027-01-01 08:00Z', 'in the next year') FROM pg_temp.ask('{"time_window": {"start": "08:00", "end": "09:00"}}');
SELECT set_config('kavach.clock', '2026-03-10 12:00:00+00', true);

-- retry_at is where waiting helps: time alone is in the way, of one permission at least.
SELECT is(row(code, retry_at)::text, row(expected, opens::timestamptz)::text, what)
  FROM (VALUES
    ('{"time_window": {"start": "14:00", "end": "15:00"}, "ip_allowlist": ["10.0.0.0/8"]}', 'outside_time_window', '2026-03-10 14:00Z', 'the rest holds'),
    ('{"time_window": {"start": "14:00", "end": "15:00"}, "ip_allowlist": ["11.0.0.0/8"]}', 'outside_time_window', NULL, 'the address will not do at that time either'),
    ('{"time_window": {"start": "14:00", "end": "15:00"}, "allowed_arg_patterns": ["a"]}',  'argument_not_allowed', NULL, 'nor would the arguments'),
    ('[{"time_window": {"start": "14:00", "end": "15:00"}}, {"time_window": {"start": "13:00", "end": "14:00"}}]', 'outside_time_window', '2026-03-10 13:00Z', 'the one that opens first'),
    ('[{"allowed_arg_patterns": ["a"]}, {"time_window": {"start": "13:00", "end": "14:00"}}]', 'argument_not_allowed', '2026-03-10 13:00Z', 'whichever names the answer')
  ) AS t (constraints, expected, opens, what), pg_temp.ask(constraints::jsonb, ip => '10.0.0.1');
SELECT kavach_create_agent('agt_two', 'ann', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 1}},
  {"resource": "*", "actions": ["*"], "constraints": {"time_window": {"start": "12:30", "end": "14:00"}}}]');
SELECT is(code, 'allowed', 'a permission with a rate') FROM kavach_authorize('agt_two', 'run', 'x');
SELECT is(row(code, retry_at)::text, row('rate_limited', timestamptz '2026-03-10 12:30Z')::text, 'used up, until the other opens') FROM kavach_authorize('agt_two', 'run', 'x');

-- One and many.
SELECT kavach_create_agent('agt_one', 'uma', permissions => '[{"resource": "x", "actions": ["run"], "constraints": {"max_calls_per_hour": 1}}]');
SELECT matches(reason, '^the agent''s only permission does not allow this action', 'of one permission') FROM kavach_authorize('agt_one', 'stop', 'y');
SELECT code FROM kavach_authorize('agt_one', 'run', 'x');
SELECT matches(reason, '^permission \d+ allows 1 call per hour, and it is used up; retry from 2026-03-10T13:05:00Z on$', 'of one call an hour') FROM kavach_authorize('agt_one', 'run', 'x');
SELECT kavach_create_agent('agt_p', 'pia', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
CREATE FUNCTION pg_temp.told(limits jsonb, cost bigint DEFAULT NULL, action text DEFAULT 'block', used bigint DEFAULT 0) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  policy text := kavach_create_policy(agent_id => 'agt_p', limits => told.limits, action => told.action);
  answer text;
BEGIN
  IF used <> 0 THEN
    PERFORM kavach_adjust('agt_p', used, 'x');
  END IF;
  SELECT replace(reason, policy, 'P') FROM kavach_check_budget('agt_p', cost) INTO answer;
  IF used <> 0 THEN
    PERFORM kavach_adjust('agt_p', -used, 'x');
  END IF;
  PERFORM kavach_drop_policy(policy);
  RETURN answer;
END $$;
SELECT is(pg_temp.told(limits::jsonb, cost, action, used), 'policy P: ' || reason, reason)
  FROM (VALUES
    ('{"max_tokens_cost_per_month": 10}', 2, 'block', 9, '9 of 10 tokens used this month by agent "agt_p", 2 more do not fit; retry from 2026-04-01T00:00:00Z on, or see kavach_update_policy() and kavach_reset_policy()'),
    ('{"max_tokens_cost_total": 10}', 1, 'block', 10, '10 of 10 tokens used in total by agent "agt_p", 1 more does not fit; kavach_update_policy() raises the limit, kavach_reset_policy() forgives what is used'),
    ('{"max_tokens_cost_total": 1}', 1, 'block', 1, '1 of 1 token used in total by agent "agt_p", 1 more does not fit; kavach_update_policy() raises the limit, kavach_reset_policy() forgives what is used'),
    ('{"max_tokens_cost_per_day": 10}', NULL, 'block', 10, '10 of 10 tokens used today by agent "agt_p", nothing is left; retry from 2026-03-11T00:00:00Z on, or see kavach_update_policy() and kavach_reset_policy()'),
    ('{"max_tokens_cost_per_day": 10}', 11, 'block', 3, '3 of 10 tokens used today by agent "agt_p", 11 more never fit; kavach_update_policy() raises the limit'),
    ('{"max_tokens_cost_per_day": 0}', 1, 'block', 0, 'the limit is 0 tokens today for agent "agt_p"; kavach_update_policy() raises the limit'),
    ('{"max_tokens_cost_per_day": 0}', NULL, 'throttle', 5, 'the limit is 0 tokens today for agent "agt_p"; kavach_update_policy() raises the limit'),
    ('{"max_tokens_cost_total": 0}', 1, 'revoke', 0, 'the limit is 0 tokens in total for agent "agt_p"; such a call revokes the agent; kavach_restore_agent() restores it'),
    ('{"max_calls_per_hour": 0}', NULL, 'block', 0, 'the limit is 0 calls this hour for agent "agt_p"; kavach_update_policy() raises the limit'),
    ('{"max_tokens_cost_per_day": 0}', 1, 'warn', 0, 'the limit is 0 tokens today for agent "agt_p", and this call passes the limit')
  ) AS t (limits, cost, action, used, reason);
SELECT kavach_create_policy(agent_id => 'agt_p', limits => '{"max_calls_per_hour": 0}');
SELECT is(row(allowed, code, retry_at)::text, '(f,budget_exceeded,)', 'waiting does not help against a limit of 0') FROM kavach_check_budget('agt_p');

-- Reasons are kept: at most 2 kB, cut at a character, whatever is handed in.
SELECT kavach_create_agent('agt_long', 'ann', permissions => '[{"resource": "a", "actions": ["run"]}]');
SELECT is(octet_length(reason) BETWEEN 2000 AND 2048 AND reason LIKE '%...', true, 'a long resource, in quotes that double')
  FROM kavach_authorize('agt_long', 'run', repeat('é''', 682));
SELECT cmp_ok(octet_length(reason), '<=', 2048, 'eight long patterns, a long path, a long value')
  FROM pg_temp.ask(jsonb_build_object('allowed_arg_patterns', (SELECT jsonb_agg(n || repeat(U&'\0001', 500)) FROM generate_series(1, 8) AS n)),
                   (SELECT jsonb_build_object(repeat(U&'\0002', 500), jsonb_build_object(repeat('k', 900), repeat(U&'\0003', 9000)))));
SELECT kavach_revoke_agent('agt_long', repeat('é', 1024));
SELECT is(octet_length(reason) <= 2048 AND reason LIKE '%SELECT kavach_restore_agent(''agt_long'')', true, 'a long reason to revoke leaves room for the advice')
  FROM kavach_authorize('agt_long', 'run', 'a');
SELECT is(count(*), 0::bigint, 'and so is it kept') FROM kavach.audit_log WHERE octet_length(reason) > 2048;

SELECT * FROM finish();
ROLLBACK;
