-- rate.sql: max_calls_per_hour, a permission's own limit.
BEGIN;
SELECT plan(30);
SET LOCAL timezone = 'UTC';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

SELECT kavach_create_agent('agt_r', 'ann', permissions =>
  '[{"resource": "mail", "actions": ["send"], "constraints": {"max_calls_per_hour": 3}}]');
SET LOCAL kavach.clock = '2026-03-10 12:03:00+00';
SELECT is(string_agg((kavach_authorize('agt_r', 'send', 'mail')).code, ' '), 'allowed allowed allowed', 'as many as the limit')
  FROM generate_series(1, 3);
SELECT is(row(a.allowed, a.code, l.result, a.policy_id, a.tokens_remaining, a.calls_remaining, l.tokens_cost)::text,
          '(f,rate_limited,rate_limited,,,0,0)', 'and not one more')
  FROM kavach_authorize('agt_r', 'send', 'mail', tokens_cost => 1) a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(retry_at, '2026-03-10 13:05Z', 'retry_at: the five-minute mark at which there is room')
  FROM kavach_authorize('agt_r', 'send', 'mail');
SET LOCAL kavach.clock = '2026-03-10 13:02:59+00';
SELECT is(code, 'rate_limited', 'an hour later less a second: no') FROM kavach_authorize('agt_r', 'send', 'mail');
SET LOCAL kavach.clock = '2026-03-10 13:04:59.999999+00';
SELECT is(code, 'rate_limited', 'the five-minute window counts whole') FROM kavach_authorize('agt_r', 'send', 'mail');
SET LOCAL kavach.clock = '2026-03-10 13:05:00+00';
SELECT is(code, 'allowed', 'at retry_at: yes') FROM kavach_authorize('agt_r', 'send', 'mail');

-- Room comes back as calls grow old, one by one.
SELECT kavach_create_agent('agt_s', 'ann', permissions =>
  '[{"resource": "mail", "actions": ["send"], "constraints": {"max_calls_per_hour": 2}}]');
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';
SELECT is(code, 'allowed', 'a call at 12:00') FROM kavach_authorize('agt_s', 'send', 'mail');
SET LOCAL kavach.clock = '2026-03-10 12:30:00+00';
SELECT is(code, 'allowed', 'a call at 12:30') FROM kavach_authorize('agt_s', 'send', 'mail');
SELECT is(retry_at, '2026-03-10 13:05Z', 'the older one leaves first') FROM kavach_authorize('agt_s', 'send', 'mail');
SET LOCAL kavach.clock = '2026-03-10 13:05:00+00';
SELECT is(code, 'allowed', 'a call at 13:05') FROM kavach_authorize('agt_s', 'send', 'mail');
SELECT is(retry_at, '2026-03-10 13:35Z', 'then the other') FROM kavach_authorize('agt_s', 'send', 'mail');

-- Per agent and permission.
SELECT kavach_create_agent('agt_t', 'ann', permissions =>
  '[{"resource": "mail", "actions": ["*"], "constraints": {"max_calls_per_hour": 1}},
    {"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 2}}]');
SELECT array_agg(permission_id ORDER BY permission_id) AS p FROM kavach.permission WHERE agent_id = 'agt_t' \gset
SELECT is(l.permission_id, (:'p'::bigint[])[1], 'the first candidate with room is taken')
  FROM kavach_authorize('agt_t', 'send', 'mail') a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(l.permission_id, (:'p'::bigint[])[2], 'then the next')
  FROM kavach_authorize('agt_t', 'send', 'mail') a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(l.permission_id, (:'p'::bigint[])[2], 'whose rate is counted over all it admits')
  FROM kavach_authorize('agt_t', 'send', 'fax') a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(code, 'rate_limited', 'no candidate has room') FROM kavach_authorize('agt_t', 'send', 'mail');

-- Where several candidates are full, the one that has room first says when.
SELECT kavach_create_agent('agt_y', 'ann', permissions =>
  '[{"resource": "mail", "actions": ["*"], "constraints": {"max_calls_per_hour": 1}}, {"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 1}}]');
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';
SELECT code FROM kavach_authorize('agt_y', 'send', 'fax');
SET LOCAL kavach.clock = '2026-03-10 12:20:00+00';
SELECT code FROM kavach_authorize('agt_y', 'send', 'mail');
SELECT is(retry_at, '2026-03-10 13:05Z', 'the second of two') FROM kavach_authorize('agt_y', 'send', 'mail');
SET LOCAL kavach.clock = '2026-03-10 13:05:00+00';
SELECT code FROM kavach_authorize('agt_y', 'send', 'mail');
SELECT is(retry_at, '2026-03-10 13:25Z', 'and then the first') FROM kavach_authorize('agt_y', 'send', 'mail');

-- Where the rate refuses, budgets are not looked at; where a budget refuses, the rate is not charged.
SELECT kavach_create_agent('agt_u', 'uma', permissions =>
  '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 1}}]');
SELECT kavach_create_policy(agent_id => 'agt_u', limits => '{"max_tokens_cost_total": 10}', action => 'revoke') AS p \gset
SELECT kavach_update_policy(:'p', action => 'block');
SELECT is(code, 'budget_exceeded', 'a call that the budget refuses') FROM kavach_authorize('agt_u', 'send', 'mail', tokens_cost => 11);
SELECT is(code, 'allowed', 'has not used up the rate') FROM kavach_authorize('agt_u', 'send', 'mail', tokens_cost => 4);
SELECT kavach_update_policy(:'p', action => 'revoke');
SELECT is(code, 'rate_limited', 'the rate answers before the budget') FROM kavach_authorize('agt_u', 'send', 'mail', tokens_cost => 11);
SELECT is(status, 'active', 'and nobody is revoked') FROM kavach.agent WHERE agent_id = 'agt_u';

-- A constraint that fails hides no room: rate_limited only where a candidate passed its constraints.
SELECT kavach_create_agent('agt_v', 'ann', permissions =>
  '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 1, "ip_allowlist": ["10.0.0.0/8"]}}]');
SELECT is(code, 'ip_not_allowed', 'constraints come first') FROM kavach_authorize('agt_v', 'send', 'mail', ip => '11.0.0.1');
SELECT is(code, 'allowed', 'a refused call is not counted') FROM kavach_authorize('agt_v', 'send', 'mail', ip => '10.0.0.1');

-- A retry of an admitted call, and a call that rolls back, leave the rate alone.
SELECT kavach_create_agent('agt_x', 'ann', permissions =>
  '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 2}}]');
SELECT audit_id AS a FROM kavach_authorize('agt_x', 'send', 'mail', request_id => 'r') \gset
SELECT is(audit_id, :'a', 'a retry') FROM kavach_authorize('agt_x', 'send', 'mail', request_id => 'r');
SAVEPOINT s;
SELECT code FROM kavach_authorize('agt_x', 'send', 'mail');
ROLLBACK TO s;
SELECT is(code, 'allowed', 'neither has used up the rate') FROM kavach_authorize('agt_x', 'send', 'mail');
SELECT is(code, 'rate_limited', 'this has') FROM kavach_authorize('agt_x', 'send', 'mail');
SELECT is(audit_id, :'a', 'and a retry has its answer all the same') FROM kavach_authorize('agt_x', 'send', 'mail', request_id => 'r');

-- Any 60 minutes never hold more than the limit, however the calls fall; and a silent hour and five minutes
-- gives everything back.
SELECT kavach_create_agent('agt_w', 'ann', permissions =>
  '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 7}}]');
DO $$
DECLARE t timestamptz := '2026-03-10 00:00Z';
BEGIN
  FOR i IN 1 .. 400 LOOP
    t := t + make_interval(secs => (i * 7919) % 601);
    PERFORM set_config('kavach.clock', t::text, true);
    PERFORM code FROM kavach_authorize('agt_w', 'run', 'tool');
  END LOOP;
END $$;
SELECT cmp_ok(max(n), '=', 7::bigint, 'the fullest hour holds the limit and no more')
  FROM (SELECT (SELECT count(*) FROM kavach.audit_log b WHERE b.agent_id = 'agt_w' AND b.result = 'allowed'
                   AND b.ts <= a.ts AND b.ts > a.ts - interval '1 hour') AS n
          FROM kavach.audit_log a WHERE a.agent_id = 'agt_w' AND a.result = 'allowed') AS hours;
SELECT cmp_ok(count(*), '>', 100::bigint, 'many are refused') FROM kavach.audit_log WHERE agent_id = 'agt_w' AND result <> 'allowed';
SELECT is(count(*), 0::bigint, 'nothing is refused that has had room for an hour and five minutes')
  FROM kavach.audit_log a
 WHERE a.agent_id = 'agt_w' AND a.result <> 'allowed'
   AND (SELECT count(*) FROM kavach.audit_log b WHERE b.agent_id = 'agt_w' AND b.result = 'allowed'
           AND b.ts <= a.ts AND b.ts >= a.ts - interval '65 minutes') < 7;

SELECT * FROM finish();
ROLLBACK;
