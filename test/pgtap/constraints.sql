-- constraints.sql: argument globs, time windows and networks, each at its edges.
BEGIN;
SELECT plan(103);
SET LOCAL timezone = 'Asia/Tokyo';
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';

CREATE FUNCTION pg_temp.ask(constraints jsonb, arguments jsonb DEFAULT NULL, ip inet DEFAULT NULL, clock text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE agent text := kavach_create_agent(user_id => 'ann');
BEGIN
  PERFORM kavach_grant_permission(agent, '*', '{run}', ask.constraints);
  PERFORM set_config('kavach.clock', coalesce(clock, '2026-03-10 12:00:00+00'), true);
  RETURN (SELECT code FROM kavach_authorize(agent, 'run', 'tool', arguments => ask.arguments, ip => ask.ip));
END $$;

-- allowed_arg_patterns: every string value, at any depth, matches one glob.
SELECT is(pg_temp.ask(jsonb_build_object('allowed_arg_patterns', patterns::jsonb), arguments::jsonb),
          CASE WHEN passes THEN 'allowed' ELSE 'argument_not_allowed' END,
          format('%s %s %s', patterns, CASE WHEN passes THEN 'admits' ELSE 'refuses' END, coalesce(arguments, 'NULL')))
  FROM (VALUES
    ('["/tmp/*"]',        '{"path": "/tmp/a"}',                        true),
    ('["/tmp/*"]',        '{"path": "/tmp/a/b c"}',                    true),
    ('["/tmp/*"]',        '{"path": "/tmp/"}',                         true),
    ('["/tmp/*"]',        '{"path": "/etc/passwd"}',                   false),
    ('["/tmp/*"]',        '{"path": "x/tmp/a"}',                       false),
    ('["/tmp/*"]',        '{"path": "/tmp/a\nb"}',                     true),
    ('["/tmp/*"]',        '{"path": "/TMP/a"}',                        false),
    ('["/tmp/*"]',        '{"a": "/tmp/a", "b": "/etc/b"}',            false),
    ('["/tmp/*", "/etc/b"]', '{"a": "/tmp/a", "b": "/etc/b"}',         true),
    ('["/tmp/*"]',        '{"a": {"b": {"c": "/etc/b"}}}',             false),
    ('["/tmp/*"]',        '{"a": ["/tmp/a", ["/tmp/b", "/etc/c"]]}',   false),
    ('["/tmp/*"]',        '{"a": ["/tmp/a", {"b": "/tmp/b"}]}',        true),
    ('["/tmp/*"]',        '{"path": "/tmp/a", "n": 5, "t": true, "z": null}', true),
    ('["/tmp/*"]',        '{}',                                        false),
    ('["/tmp/*"]',        NULL,                                        false),
    ('["a?c"]',           '{"x": "abc"}',                              true),
    ('["a?c"]',           '{"x": "aéc"}',                              true),
    ('["a?c"]',           '{"x": "ac"}',                               false),
    ('["a?c"]',           '{"x": "abbc"}',                             false),
    ('["a\\*c"]',         '{"x": "a*c"}',                              true),
    ('["a\\*c"]',         '{"x": "abc"}',                              false),
    ('["a\\?c"]',         '{"x": "abc"}',                              false),
    ('["*.example.com"]', '{"x": "a.example.com"}',                    true),
    ('["*.example.com"]', '{"x": "a.exampleXcom"}',                    false),
    ('["50%_[a]"]',       '{"x": "50%_[a]"}',                          true),
    ('["a_c"]',           '{"x": "abc"}',                              false),
    ('["50%"]',           '{"x": "500"}',                              false),
    ('["*a*a*a*b"]',      '{"x": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaac"}',  false),
    ('[""]',              '{"x": ""}',                                 true),
    ('["*"]',             '{"x": ""}',                                 true)
  ) AS t (patterns, arguments, passes);

-- time_window: UTC whatever the session's TimeZone; start belongs to it, end does not.
SELECT is(pg_temp.ask(jsonb_build_object('time_window', jsonb_build_object('start', since, 'end', until)),
                      clock => '2026-03-10 ' || at || '+00'),
          CASE WHEN passes THEN 'allowed' ELSE 'outside_time_window' END,
          format('%s to %s at %s', since, until, at))
  FROM (VALUES
    ('09:00', '17:00', '08:59:59.999999', false),
    ('09:00', '17:00', '09:00:00',        true),
    ('09:00', '17:00', '16:59:59.999999', true),
    ('09:00', '17:00', '17:00:00',        false),
    ('22:00', '06:00', '21:59:59.999999', false),
    ('22:00', '06:00', '22:00:00',        true),
    ('22:00', '06:00', '23:59:59.999999', true),
    ('22:00', '06:00', '00:00:00',        true),
    ('22:00', '06:00', '05:59:59.999999', true),
    ('22:00', '06:00', '06:00:00',        false),
    ('22:00', '06:00', '12:00:00',        false),
    ('18:00', '24:00', '23:59:59.999999', true),
    ('18:00', '24:00', '00:00:00',        false),
    ('00:00', '24:00', '00:00:00',        true),
    ('22:00', '00:00', '23:59:59.999999', true),
    ('22:00', '00:00', '00:00:00',        false),
    ('12:30:15', '12:30:16', '12:30:15',  true),
    ('12:30:15', '12:30:16', '12:30:14.999999', false)
  ) AS t (since, until, at, passes);

-- ip_allowlist: IPv4 and IPv6 networks.
SELECT is(pg_temp.ask(jsonb_build_object('ip_allowlist', networks::jsonb), ip => ip::inet),
          CASE WHEN passes THEN 'allowed' ELSE 'ip_not_allowed' END,
          format('%s %s %s', networks, CASE WHEN passes THEN 'admits' ELSE 'refuses' END, coalesce(ip, 'NULL')))
  FROM (VALUES
    ('["10.0.0.0/8"]',                  '10.255.255.255', true),
    ('["10.0.0.0/8"]',                  '11.0.0.0',       false),
    ('["10.0.0.0/8"]',                  '9.255.255.255',  false),
    ('["10.0.0.0/8"]',                  '10.0.0.0/7',     false),
    ('["10.0.0.0/8", "192.0.2.7/32"]',  '192.0.2.7',      true),
    ('["10.0.0.0/8", "192.0.2.7/32"]',  '192.0.2.8',      false),
    ('["2001:db8::/32"]',               '2001:db8:1::1',  true),
    ('["2001:db8::/32"]',               '2001:db9::1',    false),
    ('["2001:db8::/32"]',               '10.0.0.1',       false),
    ('["0.0.0.0/0"]',                   '2001:db8::1',    false),
    ('["0.0.0.0/0", "::/0"]',           '2001:db8::1',    true),
    ('["10.0.0.0/8"]',                  NULL,             false),
    -- IPv4 that is mapped into IPv6 is the same address, on either side.
    ('["10.0.0.0/8"]',                  '::ffff:10.1.2.3', true),
    ('["10.0.0.0/8"]',                  '::ffff:0a01:203', true),
    ('["10.0.0.0/8"]',                  '::ffff:11.1.2.3', false),
    ('["10.0.0.0/8"]',                  '::ffff:10.0.0.0/104', true),
    ('["10.0.0.0/8"]',                  '::ffff:10.0.0.0/103', false),
    ('["10.0.0.0/8"]',                  '::10.1.2.3',     false),
    ('["10.0.0.0/8"]',                  '::fffe:10.1.2.3', false),
    ('["::ffff:10.0.0.0/104"]',         '10.1.2.3',       true),
    ('["::ffff:10.0.0.0/104"]',         '11.1.2.3',       false),
    ('["::ffff:10.0.0.0/104"]',         '::ffff:10.1.2.3', true),
    ('["::ffff:10.0.0.7"]',             '10.0.0.7',       true),
    ('["::ffff:10.0.0.7"]',             '10.0.0.8',       false),
    ('["::ffff:0:0/96"]',               '192.0.2.1',      true),
    ('["::ffff:0:0/96"]',               '2001:db8::1',    false),
    ('["0.0.0.0/0"]',                   '::ffff:192.0.2.1', true),
    ('["::/0"]',                        '192.0.2.1',      false),
    ('["::/0"]',                        '::ffff:192.0.2.1', false)
  ) AS t (networks, ip, passes);

-- Several constraints in one permission: all must hold.
SELECT is(pg_temp.ask('{"ip_allowlist": ["10.0.0.0/8"], "allowed_arg_patterns": ["ok"], "time_window": {"start": "11:00", "end": "13:00"}}',
                      '{"x": "ok"}', '10.0.0.1'), 'allowed', 'all constraints hold');
SELECT is(pg_temp.ask('{"ip_allowlist": ["10.0.0.0/8"], "allowed_arg_patterns": ["ok"], "time_window": {"start": "11:00", "end": "13:00"}}',
                      '{"x": "ok"}', '11.0.0.1'), 'ip_not_allowed', 'one of three does not');
SELECT is(pg_temp.ask('{"ip_allowlist": ["10.0.0.0/8"], "allowed_arg_patterns": ["ok"], "time_window": {"start": "14:00", "end": "15:00"}}',
                      '{"x": "ok"}', '11.0.0.1'), 'outside_time_window', 'time is looked at before the network');
SELECT is(pg_temp.ask('{"ip_allowlist": ["10.0.0.0/8"], "allowed_arg_patterns": ["ok"], "time_window": {"start": "14:00", "end": "15:00"}}',
                      '{"x": "no"}', '11.0.0.1'), 'argument_not_allowed', 'and arguments before both');

-- What somebody has written by hand and cannot be read is an error for a call that it would be applied to, and for no other.
CREATE FUNCTION pg_temp.by_hand(constraints jsonb, resource text, actions text[] DEFAULT '{run}') RETURNS text LANGUAGE plpgsql AS $$
DECLARE agent text := kavach_create_agent(user_id => 'ann');
BEGIN
  INSERT INTO kavach.permission (agent_id, resource, actions, constraints)
  VALUES (agent, 'tool', by_hand.actions, by_hand.constraints), (agent, 'other', '{run}', '{}');
  RETURN (SELECT code FROM kavach_authorize(agent, 'run', by_hand.resource, arguments => '{"x": "a"}', ip => '10.0.0.1'));
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
SELECT is(pg_temp.by_hand(constraints::jsonb, 'tool'), error, 'by hand: ' || constraints)
  FROM (VALUES
    ('{"time_window": {"start": "25:00", "end": "06:00"}}',      '22008 date/time field value out of range: "25:00"'),
    ('{"time_window": {"start": "22:00", "end": "06:60"}}',      '22008 date/time field value out of range: "06:60"'),
    ('{"time_window": {"start": "24:00:01", "end": "06:00"}}',   '22008 date/time field value out of range: "24:00:01"'),
    ('{"time_window": {"start": "6:00", "end": "07:00"}}',       '22023 invalid value of constraint "time_window"'),
    ('{"time_window": {"start": "06:00", "end": "06:00"}}',      '22023 invalid value of constraint "time_window"'),
    ('{"time_window": ["06:00", "07:00"]}',                      '22023 invalid value of constraint "time_window"'),
    ('{"ip_allowlist": []}',                                     '22023 invalid value of constraint "ip_allowlist"'),
    ('{"ip_allowlist": ["11.0.0.0/8", 5]}',                      '22023 invalid value of constraint "ip_allowlist"'),
    ('{"ip_allowlist": ["11.0.0.0/8", "10"]}',                   '22P02 invalid input syntax for type inet: "10"'),
    ('{"ip_allowlist": ["10.0.0.1/8"]}',                         '22P02 invalid cidr value: "10.0.0.1/8"'),
    ('{"ip_allowlist": ["2001:db8::/129"]}',                     '22P02 invalid input syntax for type cidr: "2001:db8::/129"'),
    ('{"allowed_arg_patterns": "a*"}',                           '22023 invalid value of constraint "allowed_arg_patterns"'),
    ('{"allowed_arg_patterns": ["\\"]}',                          '22025 LIKE pattern must not end with escape character'),
    ('{"max_calls_per_hour": 1.5}',                              '22023 invalid value of constraint "max_calls_per_hour"'),
    -- what is not applied does no harm, nor what is none
    ('{"allowed_arg_patterns": ["b"], "time_window": 5}',        'argument_not_allowed'),
    ('{"max_calls_per_day": 5}',                                 'allowed'),
    ('5',                                                        'allowed'),
    -- a minute has 60 seconds, and the server takes the sixtieth for the next one
    ('{"time_window": {"start": "11:59:60", "end": "12:00:01"}}', 'allowed')
  ) AS t (constraints, error);
SELECT is(pg_temp.by_hand('{}', 'tool', '{run,NULL}'), '22004 actions must not contain NULL', 'by hand: an action that is NULL');
SELECT is(pg_temp.by_hand('{"ip_allowlist": ["x"], "time_window": 5, "allowed_arg_patterns": {}, "max_calls_per_hour": -1}', 'other'), 'allowed', 'by hand: of another permission');
SELECT is(pg_temp.by_hand('{}', 'tool', '{}'), 'permission_denied', 'by hand: no action at all');

-- Many strings and globs: the call can be cancelled while it matches them, not only afterwards.
CREATE FUNCTION pg_temp.cancelled_in(agent text, arguments jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  context text;
BEGIN
  PERFORM kavach_authorize(agent, 'run', 'tool', arguments => cancelled_in.arguments);
  RETURN 'not cancelled';
EXCEPTION WHEN query_canceled THEN
  GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
  RETURN context;
END $$;
CREATE TEMP TABLE long AS
SELECT kavach_create_agent(user_id => 'ann', permissions => jsonb_build_array(jsonb_build_object('resource', '*', 'actions', '["*"]'::jsonb, 'constraints',
         jsonb_build_object('allowed_arg_patterns', (SELECT jsonb_agg('g' || n) || '["*"]' FROM generate_series(1, 50) AS n))))) AS agent,
       (SELECT jsonb_build_object('x', jsonb_agg('s' || n)) FROM generate_series(1, 300000) AS n) AS arguments;
SET LOCAL statement_timeout = '100ms';
SELECT pg_temp.cancelled_in(agent, arguments) AS context FROM long \gset
SET LOCAL statement_timeout = 0;
SELECT doesnt_match(:'context'::text, 'pg_inherits|not cancelled', 'matching can be cancelled');

SELECT * FROM finish();
ROLLBACK;
