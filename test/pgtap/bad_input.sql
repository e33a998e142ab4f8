-- bad_input.sql: bad input is an error with its SQLSTATE and changes nothing.
BEGIN;
SELECT plan(283);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_total": 1000}') AS each,
       kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_total": 1000}') AS pol,
       (kavach_authorize('agt_a', 'run', 'x', tokens_cost => 10, request_id => 'r1')).audit_id AS id \gset

CREATE FUNCTION pg_temp.world() RETURNS text LANGUAGE sql AS $$
  SELECT md5(concat((SELECT string_agg(t::text, ',' ORDER BY agent_id) FROM kavach.agent t), (SELECT string_agg(t::text, ',' ORDER BY permission_id) FROM kavach.permission t),
                    (SELECT string_agg(t::text, ',' ORDER BY policy_id) FROM kavach.budget_policy t), (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM kavach.budget_limit t),
                    (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM kavach.budget_baseline t), (SELECT string_agg(t::text, ',' ORDER BY id) FROM kavach.audit_log t)))
$$;
SELECT pg_temp.world() AS world \gset

-- The SQLSTATE of a call; what a call that succeeds has done stays, so that the comparison at the end sees it.
CREATE FUNCTION pg_temp.state(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE 'SELECT ' || call;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
CREATE FUNCTION pg_temp.refuses(state text, VARIADIC calls text[]) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT matches(pg_temp.state(c), '^(' || state || ')$', left(c, 160)) FROM unnest(calls) AS c
$$;
CREATE FUNCTION pg_temp.change(relation text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('DELETE FROM %I', relation);
  RETURN true;
END $$;

-- what no text can hold
SELECT pg_temp.refuses('22P05',
  $$kavach_authorize('agt_a', 'run', 'x', arguments => '{"to": "\u0000"}')$$, $$kavach_record_usage('agt_a', 1, metadata => '{"\u0000": 1}')$$,
  $$kavach_create_agent('agt_x', 'ann', metadata => '{"a": "\u0000"}')$$, $$kavach_update_agent('agt_a', '{"name": "\u0000"}')$$);

-- agents
SELECT pg_temp.refuses('22004',
  $$kavach_create_agent('agt_x')$$, $$kavach_create_agent('agt_x', NULL)$$, $$kavach_update_agent(NULL, '{}')$$, $$kavach_update_agent('agt_a', NULL)$$,
  'kavach_revoke_agent(NULL)', 'kavach_restore_agent(NULL)');
SELECT pg_temp.refuses('22023',
  $$kavach_create_agent('', 'ann')$$, $$kavach_create_agent('agt_x', '')$$, $$kavach_create_agent('agt_x', 'ann', '')$$,
  $$kavach_create_agent('agt_x', 'agt_a')$$, $$kavach_create_agent('agt_x', 'agt_')$$,
  $$kavach_create_agent('agt_x', 'ann', metadata => '[]')$$, $$kavach_create_agent('agt_x', 'ann', metadata => '"x"')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '{}')$$, $$kavach_create_agent('agt_x', 'ann', permissions => '[1]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": 1, "actions": ["run"]}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": "run"}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": [1]}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": []}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a*", "actions": ["run"]}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": ["run"], "constraints": {"x": 1}}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": ["run"], "constraints": []}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": ["run"]}, {"resource": "a", "actions": ["run"], "x": 1}]')$$,
  $$kavach_update_agent('agt_a', '[]')$$, $$kavach_update_agent('agt_a', '{"status": "revoked"}')$$, $$kavach_update_agent('agt_a', '{"agent_id": "agt_b"}')$$,
  $$kavach_update_agent('agt_a', '{"name": "new", "colour": "red"}')$$,
  $$kavach_update_agent('agt_a', '{"user_id": ""}')$$, $$kavach_update_agent('agt_a', '{"user_id": "agt_b"}')$$, $$kavach_update_agent('agt_a', '{"user_id": 5}')$$,
  $$kavach_update_agent('agt_a', '{"tenant_id": ""}')$$, $$kavach_update_agent('agt_a', '{"tenant_id": {}}')$$, $$kavach_update_agent('agt_a', '{"metadata": []}')$$);
SELECT pg_temp.refuses('22004|22023',
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a"}]')$$, $$kavach_create_agent('agt_x', 'ann', permissions => '[{"actions": ["run"]}]')$$,
  $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": null}]')$$, $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": [["run"]]}]')$$, $$kavach_create_agent('agt_x', 'ann', permissions => '[{"resource": "a", "actions": [[]]}]')$$, $$kavach_create_agent('agt_x', 'ann', permissions => '[null]')$$,
  $$kavach_update_agent('agt_a', '{"user_id": null}')$$);
SELECT pg_temp.refuses('22007|22023', $$kavach_update_agent('agt_a', '{"expires_at": "soon"}')$$, $$kavach_update_agent('agt_a', '{"expires_at": 5}')$$, $$kavach_update_agent('agt_a', '{"expires_at": ""}')$$);
SELECT pg_temp.refuses('22001',
  $$kavach_create_agent(repeat('a', 256), 'ann')$$, $$kavach_create_agent('agt_x', repeat('é', 128))$$, $$kavach_create_agent('agt_x', 'ann', repeat('t', 256))$$,
  $$kavach_update_agent('agt_a', jsonb_build_object('user_id', repeat('u', 256)))$$, $$kavach_update_agent('agt_a', jsonb_build_object('tenant_id', repeat('u', 256)))$$);
SELECT pg_temp.refuses('23505', $$kavach_create_agent('agt_a', 'bob')$$);
SELECT pg_temp.refuses('42704', $$kavach_update_agent('agt_x', '{"name": "x"}')$$, $$kavach_revoke_agent('agt_x')$$, $$kavach_restore_agent('agt_x')$$);
SELECT pg_temp.refuses('22P02', $$kavach_create_agent('agt_x', 'ann', permissions => '[{]')$$, $$kavach_update_agent('agt_a', '{')$$);

-- permissions and constraints
SELECT pg_temp.refuses('22004', $$kavach_grant_permission(NULL, 'a', '{run}')$$, $$kavach_grant_permission('agt_a', NULL, '{run}')$$, $$kavach_grant_permission('agt_a', 'a', NULL)$$,
  $$kavach_grant_permission('agt_a', 'a', '{run,NULL}')$$, 'kavach_revoke_permission(NULL)');
SELECT pg_temp.refuses('42704', $$kavach_grant_permission('agt_x', 'a', '{run}')$$);
SELECT pg_temp.refuses('22001', $$kavach_grant_permission('agt_a', repeat('a', 2049), '{run}')$$);
SELECT pg_temp.refuses('22023', format('kavach_grant_permission(%L, %L, %L)', 'agt_a', pattern, '{run}'))
  FROM unnest('{"","a*","*a","a:b*","a*b:c","**:a","a:**:b","***","a:***","a**"}'::text[]) AS pattern;
SELECT pg_temp.refuses('22023', $$kavach_grant_permission('agt_a', 'a', '{}')$$, $$kavach_grant_permission('agt_a', 'a', '{""}')$$, $$kavach_grant_permission('agt_a', 'a', '{{run},{stop}}')$$);
SELECT pg_temp.refuses('22023', format('kavach_grant_permission(%L, %L, %L, %L)', 'agt_a', 'a', '{run}', c))
  FROM unnest(ARRAY['[]', '"x"', '{"unknown": 1}', '{"max_calls_per_hour": 1, "Max_calls_per_hour": 1}',
    '{"max_calls_per_hour": 0}', '{"max_calls_per_hour": -1}', '{"max_calls_per_hour": 1.5}', '{"max_calls_per_hour": "1"}', '{"max_calls_per_hour": null}', '{"max_calls_per_hour": []}',
    '{"allowed_arg_patterns": []}', '{"allowed_arg_patterns": "a"}', '{"allowed_arg_patterns": [1]}', '{"allowed_arg_patterns": [null]}', '{"allowed_arg_patterns": {}}',
    '{"allowed_arg_patterns": ["a\\"]}', '{"allowed_arg_patterns": ["a\\\\\\"]}', '{"ip_allowlist": []}', '{"ip_allowlist": "10.0.0.0/8"}', '{"ip_allowlist": [1]}',
    '{"time_window": "9-17"}', '{"time_window": {}}', '{"time_window": {"start": "09:00"}}', '{"time_window": {"end": "09:00"}}', '{"time_window": {"start": "09:00", "end": "09:00"}}',
    '{"time_window": {"start": "9", "end": "17:00"}}', '{"time_window": {"start": 9, "end": 17}}', '{"time_window": {"start": "09:00", "end": "17:00", "zone": "CET"}}',
    '{"time_window": {"start": "09:00 ", "end": "17:00"}}', '{"time_window": {"start": "", "end": "17:00"}}']) AS c;

SELECT pg_temp.refuses('22023|22P02|22007|22008', format('kavach_grant_permission(%L, %L, %L, %L)', 'agt_a', 'a', '{run}', c))  -- or as the types cidr and time say
  FROM unnest(ARRAY['{"ip_allowlist": ["10.0.0.0/33"]}', '{"ip_allowlist": ["10.0.0.1/8"]}', '{"ip_allowlist": ["2001:db8::1/32"]}', '{"ip_allowlist": ["localhost"]}', '{"ip_allowlist": [""]}',
    '{"ip_allowlist": ["10"]}', '{"ip_allowlist": ["10.0.0.0/8", "x"]}',
    '{"time_window": {"start": "09:00", "end": "25:00"}}', '{"time_window": {"start": "09:00", "end": "24:01"}}', '{"time_window": {"start": "24:00", "end": "09:00"}}', '{"time_window": {"start": "09:60", "end": "17:00"}}']) AS c;

-- authorize
SELECT pg_temp.refuses('22004', $$kavach_authorize(NULL, 'run', 'x')$$, $$kavach_authorize('agt_a', NULL, 'x')$$, $$kavach_authorize('agt_a', 'run', NULL)$$);
SELECT pg_temp.refuses('22023',
  $$kavach_authorize('', 'run', 'x')$$, $$kavach_authorize('agt_a', '', 'x')$$, $$kavach_authorize('agt_a', 'run', '')$$,
  $$kavach_authorize('agt_a', 'run', 'x', -1)$$, $$kavach_authorize('agt_a', 'run', 'x', -9223372036854775808)$$,
  $$kavach_authorize('agt_a', 'run', 'x', 1, min_tokens => 0)$$, $$kavach_authorize('agt_a', 'run', 'x', 1, min_tokens => 2)$$, $$kavach_authorize('agt_a', 'run', 'x', 1, min_tokens => -1)$$,
  $$kavach_authorize('agt_a', 'run', 'x', min_tokens => 1)$$, $$kavach_authorize('agt_a', 'run', 'x', request_id => '')$$,
  $$kavach_authorize('agt_a', 'run', 'x', arguments => '[]')$$, $$kavach_authorize('agt_a', 'run', 'x', arguments => 'null')$$, $$kavach_authorize('agt_a', 'run', 'x', metadata => '1')$$,
  $$kavach_authorize('agt_ghost', 'run', 'x', -1)$$);
SELECT pg_temp.refuses('KV001', $$kavach_authorize('agt_a', 'stop', 'x', 10, request_id => 'r1')$$, format('kavach_record_usage(%L, 1, %L, %L)', 'agt_a', :'id', 'r2'));
SELECT pg_temp.refuses('22001',
  $$kavach_authorize(repeat('a', 256), 'run', 'x')$$, $$kavach_authorize('agt_a', repeat('a', 256), 'x')$$, $$kavach_authorize('agt_a', 'run', repeat('x', 2049))$$,
  $$kavach_authorize('agt_a', 'run', repeat('é', 1025))$$, $$kavach_authorize('agt_a', 'run', 'x', request_id => repeat('r', 256))$$);
SELECT pg_temp.refuses('22P02', $$kavach_authorize('agt_a', 'run', 'x', arguments => '{x}')$$, $$kavach_authorize('agt_a', 'run', 'x', ip => '10.0.0')$$, $$kavach_authorize('agt_a', 'run', 'x', ip => '10.0.0.256')$$);

-- record_usage, check_budget, adjust
SELECT pg_temp.refuses('22004', 'kavach_record_usage(NULL, 1)', $$kavach_record_usage('agt_a', NULL)$$, 'kavach_check_budget(NULL)', $$kavach_adjust(NULL, 1, 'x')$$, $$kavach_adjust('agt_a', NULL, 'x')$$, $$kavach_adjust('agt_a', 1, NULL)$$);
SELECT pg_temp.refuses('22004', $$kavach_check_budget('agt_a', 1, 'run')$$, $$kavach_check_budget('agt_a', 1, resource => 'x')$$, $$kavach_check_budget('agt_a', 1, arguments => '{}')$$, $$kavach_check_budget('agt_a', 1, ip => '10.0.0.1')$$);
SELECT pg_temp.refuses('22023', $$kavach_record_usage('', 1)$$, $$kavach_record_usage('agt_a', -1)$$, $$kavach_record_usage('agt_a', 1, request_id => '')$$, $$kavach_record_usage('agt_a', 1, metadata => '[]')$$,
  format('kavach_record_usage(%L, -1, %L)', 'agt_a', :'id'),
  $$kavach_check_budget('')$$, $$kavach_check_budget('agt_a', -1)$$, $$kavach_check_budget('agt_a', 1, '', 'x')$$, $$kavach_check_budget('agt_a', 1, 'run', '')$$,
  $$kavach_check_budget('agt_a', 1, 'run', 'x', '[]')$$, $$kavach_check_budget('agt_a', 1, min_tokens => 2)$$, $$kavach_check_budget('agt_a', min_tokens => 1)$$, $$kavach_adjust('', 1, 'x')$$, $$kavach_adjust('agt_a', 0, 'x')$$, $$kavach_adjust('agt_a', 1, '')$$);
SELECT pg_temp.refuses('22001', $$kavach_record_usage(repeat('a', 256), 1)$$, $$kavach_record_usage('agt_a', 1, request_id => repeat('r', 256))$$, $$kavach_check_budget(repeat('a', 256))$$, $$kavach_adjust(repeat('a', 256), 1, 'x')$$);
SELECT pg_temp.refuses('KV002', $$kavach_record_usage('agt_a', 1, gen_random_uuid())$$);
SELECT pg_temp.refuses('42704', $$kavach_record_usage('agt_x', 1)$$, $$kavach_adjust('agt_x', 1, 'x')$$);
SELECT pg_temp.refuses('22P02', $$kavach_record_usage('agt_a', 1, 'not a uuid')$$);

-- policies
SELECT pg_temp.refuses('22004|22023',
  $$kavach_create_policy(limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(agent_id => NULL, user_id => NULL, limits => '{"max_calls_total": 1}')$$,
  $$kavach_create_policy(all_agents => NULL, limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(agent_id => 'agt_a')$$, $$kavach_create_policy(agent_id => 'agt_a', limits => '{"max_calls_total": null}')$$,
  $$kavach_create_policy(agent_id => 'agt_a', limits => '{"max_calls_total": 1}', action => NULL)$$);
SELECT pg_temp.refuses('22023',
  $$kavach_create_policy(user_id => 'agt_a', limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(user_id => '', limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(tenant_id => '', limits => '{"max_calls_total": 1}')$$,
  $$kavach_create_policy(user_id => 'ann', tenant_id => 'acme', limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(user_id => 'ann', all_agents => true, limits => '{"max_calls_total": 1}')$$,
  $$kavach_create_policy(agent_id => 'agt_a', each => 'user', limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(each => 'user', all_agents => true, limits => '{"max_calls_total": 1}')$$,
  $$kavach_create_policy(each => 'team', limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(each => '', limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(each => 'all', limits => '{"max_calls_total": 1}')$$,
  $$kavach_create_policy(agent_id => 'agt_a', limits => '{"max_calls_total": 1}', action => 'stop')$$, $$kavach_create_policy(agent_id => 'agt_a', limits => '{"max_calls_total": 1}', action => '')$$,
  $$kavach_create_policy(agent_id => 'agt_a', limits => '{}')$$, $$kavach_create_policy(agent_id => 'agt_a', limits => '[]')$$, $$kavach_create_policy(agent_id => 'agt_a', limits => '5')$$, $$kavach_create_policy(agent_id => 'agt_a', limits => 'null')$$);
SELECT pg_temp.refuses('22023', format('kavach_create_policy(agent_id => %L, limits => %L)', 'agt_a', l))
  FROM unnest(ARRAY['{"max_tokens": 1}', '{"max_tokens_cost": 1}', '{"max_tokens_cost_per_week": 1}', '{"max_tokens_cost_per_total": 1}', '{"max_calls_total": 1, "max_calls_Total": 1}',
    '{"max_calls_total": -1}', '{"max_calls_total": 1.5}', '{"max_calls_total": "5"}', '{"max_calls_total": true}', '{"max_calls_total": [1]}', '{"max_calls_total": {}}']) AS l;
SELECT pg_temp.refuses('22003', $$kavach_create_policy(agent_id => 'agt_a', limits => '{"max_calls_total": 9223372036854775808}')$$, $$kavach_create_policy(agent_id => 'agt_a', limits => '{"max_calls_total": 1e300}')$$);
SELECT pg_temp.refuses('22001', $$kavach_create_policy(user_id => repeat('u', 256), limits => '{"max_calls_total": 1}')$$, $$kavach_create_policy(tenant_id => repeat('u', 256), limits => '{"max_calls_total": 1}')$$);
SELECT pg_temp.refuses('42704', $$kavach_create_policy(agent_id => 'agt_x', limits => '{"max_calls_total": 1}')$$, $$kavach_update_policy('pol_x', enabled => false)$$, $$kavach_reset_policy('pol_x')$$);
SELECT pg_temp.refuses('22P02', $$kavach_create_policy(agent_id => 'agt_a', limits => '{')$$);
SELECT pg_temp.refuses('22004', 'kavach_update_policy(NULL)', 'kavach_drop_policy(NULL)', 'kavach_reset_policy(NULL)');
SELECT pg_temp.refuses('22023', format('kavach_update_policy(%L, %L)', :'pol', '{"max_calls": 1}'), format('kavach_update_policy(%L, %L)', :'pol', '{"max_calls_total": -1}'), format('kavach_update_policy(%L, %L)', :'pol', '[]'),
  format('kavach_update_policy(%L, action => %L)', :'pol', 'stop'), format('kavach_update_policy(%L, %L)', :'pol', '{"max_tokens_cost_total": null}'));
SELECT pg_temp.refuses('22004|22023', format('kavach_reset_policy(%L)', :'each'));
SELECT pg_temp.refuses('22023', format('kavach_reset_policy(%L, %L)', :'each', ''), format('kavach_reset_policy(%L, %L)', :'pol', 'agt_b'));

-- counters
SELECT pg_temp.refuses('22004', $$kavach.current_usage(NULL, 'x', 'hour', true)$$, $$kavach.current_usage('agent', NULL, 'hour', true)$$, $$kavach.current_usage('user', NULL, 'hour', true)$$,
  $$kavach.current_usage('agent', 'agt_a', NULL, true)$$, $$kavach.current_usage('agent', 'agt_a', 'hour', NULL)$$, $$kavach.current_usage('all', NULL, 'hour', NULL)$$);
SELECT pg_temp.refuses('22023', $$kavach.current_usage('permission', '1', 'hour', true)$$, $$kavach.current_usage('agent', 'agt_a', 'five_minutes', true)$$);

-- the trigger of the tables that calls look up, on tables of another shape
CREATE TEMP TABLE no_agent AS SELECT 1 AS n;
CREATE TEMP TABLE number_agent AS SELECT 1 AS agent_id;
SELECT kavach.watch('no_agent', 'agent'), kavach.watch('number_agent', 'agent');
SELECT is(pg_temp.state(format('count(*) FROM pg_temp.change(%L)', t)), '39P01', t || ' has no agent_id of type text') FROM unnest('{no_agent,number_agent}'::text[]) AS t;

-- that of agents, on others
CREATE TEMP TABLE nothing AS SELECT 1 AS n;
CREATE TEMP TABLE number AS SELECT 1 AS agent_id;
CREATE TEMP TABLE like_agent AS SELECT 'agt_a' AS agent_id;
CREATE TRIGGER gone AFTER INSERT OR DELETE ON nothing FOR EACH ROW EXECUTE FUNCTION kavach.agent_gone();
CREATE TRIGGER gone AFTER DELETE ON number FOR EACH ROW EXECUTE FUNCTION kavach.agent_gone();
CREATE TRIGGER gone AFTER DELETE ON like_agent FOR EACH ROW EXECUTE FUNCTION kavach.agent_gone();
CREATE TRIGGER all_gone AFTER TRUNCATE ON like_agent FOR EACH STATEMENT EXECUTE FUNCTION kavach.agent_gone();
SELECT throws_ok(sql, '39P01', NULL, sql || ': it is kavach.agent''s')
  FROM unnest('{INSERT INTO nothing VALUES (2),DELETE FROM nothing,DELETE FROM number,DELETE FROM like_agent,TRUNCATE like_agent}'::text[]) AS sql;

-- reports
SELECT pg_temp.refuses('22023', format('count(*) FROM kavach_%s', report))
  FROM unnest(ARRAY[$$cost_by_agent('2026-02-01Z', '2026-01-01Z')$$, $$cost_by_user('2026-02-01Z', '2026-01-01Z')$$, $$cost_by_day(NULL, '2026-02-01Z', '2026-01-01Z')$$,
    $$query_audit(since => '2026-02-01Z', until => '2026-01-01Z')$$, $$export('2026-02-01Z', '2026-01-01Z')$$, $$export_json('2026-02-01Z', '2026-01-01Z')$$]) AS report;
SELECT pg_temp.refuses('22\d\d\d', format('count(*) FROM kavach_billing_report(%s)', m)) FROM unnest('{"2026, 13","2026, 0","2026, NULL","NULL, 3","2026, -1","999999999, 1"}'::text[]) AS m;
SELECT pg_temp.refuses('22004|22023|42704', $$kavach_grant_role(NULL, 'app')$$, $$kavach_grant_role('postgres_nobody', 'app')$$, format('kavach_grant_role(%L, NULL)', current_user), format('kavach_grant_role(%L, %L)', current_user, ''));

SELECT is(pg_temp.world(), :'world', 'nothing has changed');

-- Huge costs: an error or a refusal, never a wrap.
\set most 1000000000000000
SELECT kavach_create_agent('agt_h', 'hal', permissions => '[{"resource": "*", "actions": ["*"]}]'), kavach_create_agent('agt_i', 'ida', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT is(pg_temp.state(format('%s(%L%s, %s)', verb, 'agt_h', CASE verb WHEN 'kavach_authorize' THEN $$, 'run', 'x'$$ ELSE '' END, cost)), '22003', verb || ' of ' || cost)
  FROM unnest(ARRAY['kavach_authorize', 'kavach_record_usage', 'kavach_check_budget']) AS verb, unnest(ARRAY[1000000000000001, 9223372036854775807]) AS cost;
SELECT is(pg_temp.state(format('kavach_adjust(%L, %s, %L)', 'agt_h', cost, 'why')), '22003', 'kavach_adjust of ' || cost)
  FROM unnest(ARRAY[1000000000000001, -1000000000000001, 9223372036854775807, -9223372036854775808]) AS cost;
SELECT kavach_drop_policy(:'each'), kavach_create_policy(user_id => 'hal', limits => '{"max_tokens_cost_total": 1000000000000000}') AS huge \gset
SELECT is(row(code, tokens_remaining)::text, '(allowed,0)', 'the greatest cost fits a limit of as much') FROM kavach_authorize('agt_h', 'run', 'x', :most);
SELECT is(row(code, tokens_remaining)::text, '(budget_exceeded,0)', 'and not twice') FROM kavach_authorize('agt_h', 'run', 'x', :most);
SELECT is(row(allowed, code)::text, '(f,budget_exceeded)', 'says check_budget too') FROM kavach_check_budget('agt_h', :most);
SELECT kavach_drop_policy(:'huge');
SELECT count(kavach_record_usage('agt_h', :most)) FROM generate_series(1, 8998);
SELECT is(pg_temp.state($$count(kavach_authorize('agt_i', 'run', 'x', 1000000000000000)) FROM generate_series(1, 2)$$), '22003', 'the total of all agents is bounded');
SELECT is(pg_temp.state($$kavach_authorize('agt_i', 'run', 'x', 5)$$), 'no error', 'what fits is admitted');
SELECT kavach_adjust('agt_h', -:most, 'room');
SELECT is(pg_temp.state($$kavach_authorize('agt_i', 'run', 'x', 1000000000000000)$$), 'no error', 'and a credit makes room');
SELECT is((SELECT tokens_cost FROM kavach_cost_by_user(NULL, NULL) WHERE user_id = 'hal'), (SELECT sum(tokens_cost::numeric) FROM kavach.audit_log WHERE user_id = 'hal'), 'and the report is the exact sum');
SELECT is(pg_temp.state($$count(kavach_adjust('agt_i', -1000000000000000, 'credit')) FROM generate_series(1, 18010)$$), '22003', 'credits are bounded too');
SELECT kavach_create_policy(agent_id => 'agt_i', limits => '{"max_tokens_cost_total": 9223372036854775807}'), kavach_adjust('agt_i', -:most, 'credit'), kavach_adjust('agt_i', -:most, 'credit');
SELECT is(pg_temp.state($$kavach_check_budget('agt_i', 1)$$), 'no error', 'more is left than a bigint holds: no wrap');
SELECT is(tokens_remaining, 9223372036854775807, 'and no negative figure') FROM kavach_check_budget('agt_i', 1);

SELECT * FROM finish();
ROLLBACK;
