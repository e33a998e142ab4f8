-- dry_run.sql: kavach_check_budget with action and resource tells what kavach_authorize then decides, and changes nothing.
BEGIN;
SELECT plan(40);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';

CREATE FUNCTION pg_temp.world() RETURNS text LANGUAGE sql AS $$
  SELECT concat((SELECT string_agg(t::text, ',' ORDER BY agent_id) FROM kavach.agent t), (SELECT string_agg(t::text, ',' ORDER BY id) FROM kavach.audit_log t),
                (SELECT string_agg(row(scope, subject, period, period_start, tokens_pending, calls_pending)::text, ',' ORDER BY scope, subject, period, period_start)
                   FROM kavach.counters WHERE tokens_pending > 0 OR calls_pending > 0))
$$;
-- Asked first, whether that changed anything, and decided then.
CREATE FUNCTION pg_temp.ask_then_call(agent text, act text, resource text, cost bigint DEFAULT NULL, arguments jsonb DEFAULT NULL, ip inet DEFAULT NULL, least_ bigint DEFAULT NULL)
RETURNS TABLE (asked text, decided text, changed boolean, allowed boolean) LANGUAGE plpgsql AS $$
DECLARE
  before text := pg_temp.world();
BEGIN
  SELECT row(a.allowed, a.code, replace(a.reason, 'such a call revokes the agent', 'the agent is revoked now'), a.policy_id, a.retry_at, a.action, a.http_status)::text
    FROM kavach_check_budget(agent, cost, act, ask_then_call.resource, ask_then_call.arguments, ask_then_call.ip, least_) AS a INTO asked;
  changed := before <> pg_temp.world();
  SELECT row(a.allowed, a.code, a.reason, a.policy_id, a.retry_at, a.action, a.http_status)::text, a.allowed
    FROM kavach_authorize(agent, act, ask_then_call.resource, cost, ask_then_call.arguments, ask_then_call.ip, min_tokens => least_) AS a INTO decided, allowed;
  RETURN NEXT;
END $$;

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[
         {"resource": "mail", "actions": ["send"], "constraints": {"max_calls_per_hour": 2}},
         {"resource": "file:*", "actions": ["*"], "constraints": {"allowed_arg_patterns": ["/tmp/*"]}},
         {"resource": "db", "actions": ["read"], "constraints": {"ip_allowlist": ["10.0.0.0/8"]}},
         {"resource": "late", "actions": ["run"], "constraints": {"time_window": {"start": "18:00", "end": "19:00"}}},
         {"resource": "llm:**", "actions": ["call"]}]'),
       kavach_create_agent('agt_gone', 'ann'), kavach_create_agent('agt_old', 'ann', expires_at => '2026-03-01Z'), kavach_create_agent('agt_bare', 'ann'),
       kavach_create_agent('agt_r', 'rob', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_revoke_agent('agt_gone', 'key leaked');
SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_per_day": 100}', action => 'throttle') AS p,
       kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 50}', action => 'warn'),
       kavach_create_policy(user_id => 'rob', limits => '{"max_tokens_cost_total": 5}', action => 'revoke') AS r \gset
-- The month's partition, which advice does not make.
SELECT code FROM kavach_authorize('agt_nobody', 'run', 'x');

CREATE TEMP TABLE told AS
  SELECT n, b.*, t.allowed AS expected FROM (VALUES
    (1, 'agt_ghost', 'run', 'x', NULL::bigint, NULL, NULL, NULL::bigint, false), (2, 'agt_gone', 'run', 'x', NULL, NULL, NULL, NULL, false), (3, 'agt_old', 'run', 'x', NULL, NULL, NULL, NULL, false),
    (4, 'agt_bare', 'run', 'x', NULL, NULL, NULL, NULL, false), (5, 'agt_a', 'stop', 'mail', NULL, NULL, NULL, NULL, false),
    (6, 'agt_a', 'read', 'file:1', NULL, '{"path": "/etc/passwd"}', NULL, NULL, false), (7, 'agt_a', 'read', 'file:1', NULL, NULL, NULL, NULL, false), (8, 'agt_a', 'read', 'file:1', NULL, '{"path": "/tmp/a"}', NULL, NULL, true),
    (9, 'agt_a', 'read', 'db', NULL, NULL, '11.0.0.1', NULL, false), (10, 'agt_a', 'read', 'db', NULL, NULL, NULL, NULL, false), (11, 'agt_a', 'read', 'db', NULL, NULL, '::ffff:10.0.0.1', NULL, true),
    (12, 'agt_a', 'run', 'late', NULL, NULL, NULL, NULL, false),
    (13, 'agt_a', 'send', 'mail', NULL, NULL, NULL, NULL, true), (14, 'agt_a', 'send', 'mail', NULL, NULL, NULL, NULL, true), (15, 'agt_a', 'send', 'mail', 1000, NULL, NULL, NULL, false),
    (16, 'agt_a', 'call', 'llm:x', 60, NULL, NULL, NULL, true), (17, 'agt_a', 'call', 'llm:x', 41, NULL, NULL, NULL, false), (18, 'agt_a', 'call', 'llm:x', 90, NULL, NULL, 41, false),
    (19, 'agt_a', 'call', 'llm:x', 90, NULL, NULL, 10, true), (20, 'agt_a', 'call', 'llm:x', NULL, NULL, NULL, NULL, false),
    (21, 'agt_r', 'call', 'x', 5, NULL, NULL, NULL, true), (22, 'agt_r', 'call', 'x', 1, NULL, NULL, NULL, false)
  ) AS t (n, agent, act, resource, cost, arguments, ip, least_, allowed), LATERAL pg_temp.ask_then_call(agent, act, t.resource, cost, t.arguments::jsonb, t.ip::inet, least_) AS b;
SELECT is(count(*), 22::bigint, 'calls of each kind') FROM told;
SELECT is(asked, decided, 'asked and decided alike: ' || left(decided, 60)) FROM told ORDER BY n;
SELECT is(count(*), 0::bigint, 'asking changes nothing') FROM told WHERE changed;
SELECT is(count(*), 0::bigint, 'each call is answered as it should be') FROM told WHERE allowed IS DISTINCT FROM expected;
SELECT is(status, 'revoked', 'and the last one has revoked its agent') FROM kavach.agent WHERE agent_id = 'agt_r';
SELECT kavach_restore_agent('agt_r');
SELECT is(row(code, action, http_status, reason ~ 'such a call revokes the agent')::text, '(budget_exceeded,revoke,403,t)', 'asked alone it says that it would')
  FROM kavach_check_budget('agt_r', 1, 'call', 'x');
SELECT is(status, 'active', 'and does not') FROM kavach.agent WHERE agent_id = 'agt_r';

-- Without action and resource: agent and budgets alone.
SELECT is(row(code, action, http_status)::text, '(budget_exceeded,throttle,429)', 'the budgets') FROM kavach_check_budget('agt_a', 100);
SELECT is(row(code, action, http_status)::text, '(budget_warning,warn,200)', 'not the permissions') FROM kavach_check_budget('agt_bare');
SELECT is(row(code, action, http_status)::text, '(agent_not_found,,401)', 'the agent') FROM kavach_check_budget('agt_ghost');

-- What remains of calls is the least of budgets and rates: before the call here, after it there.
SELECT kavach_create_agent('agt_c', 'cyd', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 3}}, {"resource": "two", "actions": ["*"], "constraints": {"max_calls_per_hour": 2}},
                                                            {"resource": "free", "actions": ["*"]}]');
SELECT is(calls_remaining, 3::bigint, 'a rate') FROM kavach_check_budget('agt_c', NULL, 'run', 'one');
SELECT is(calls_remaining, 5::bigint, 'two that both admit it') FROM kavach_check_budget('agt_c', NULL, 'run', 'two');
SELECT is(calls_remaining, NULL, 'one without') FROM kavach_check_budget('agt_c', NULL, 'run', 'free');
SELECT is(calls_remaining, 2::bigint, 'after a call') FROM kavach_authorize('agt_c', 'run', 'one', request_id => 'r');
SELECT is(calls_remaining, 3::bigint, 'and one that both admit') FROM kavach_authorize('agt_c', 'run', 'two');
SELECT is(calls_remaining, 1::bigint, 'a retry tells what is left now') FROM kavach_authorize('agt_c', 'run', 'one', request_id => 'r');
SELECT kavach_create_policy(agent_id => 'agt_c', limits => '{"max_calls_total": 3}') AS c \gset
SELECT is(calls_remaining, 1::bigint, 'a budget that leaves as much') FROM kavach_check_budget('agt_c', NULL, 'run', 'two');
SELECT kavach_update_policy(:'c', '{"max_calls_total": 100}');
SELECT is(calls_remaining, 3::bigint, 'or more') FROM kavach_check_budget('agt_c', NULL, 'run', 'two');
SELECT is(calls_remaining, 0::bigint, 'the last call of a rate') FROM kavach_authorize('agt_c', 'run', 'one');

SELECT * FROM finish();
ROLLBACK;
