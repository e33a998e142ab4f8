-- stacking.sql: several policies over one call; which of them names the answer, and when a retry helps.
BEGIN;
SELECT plan(37);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

CREATE FUNCTION pg_temp.agent(id text, tenant text DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
  SELECT kavach_create_agent(id, 'user_of_' || substr(id, 5), tenant, permissions => '[{"resource": "*", "actions": ["*"]}]')
$$;

-- Every applicable policy is evaluated; a warn never hides a block, wherever it stands.
SELECT pg_temp.agent('agt_w1');
SELECT kavach_create_policy(agent_id => 'agt_w1', limits => '{"max_tokens_cost_per_hour": 10}', action => 'warn') AS warn,
       kavach_create_policy(user_id => 'user_of_w1', limits => '{"max_tokens_cost_total": 30}', action => 'block') AS block \gset
SELECT is(row(code, policy_id, tokens_remaining)::text, '(allowed,,20)', 'remaining figures leave warn policies out')
  FROM kavach_authorize('agt_w1', 'run', 'x', tokens_cost => 10);
SELECT is(row(allowed, code, policy_id, tokens_remaining, retry_at)::text, format('(t,budget_warning,%s,10,)', :'warn'), 'past a warn: admitted, with a warning')
  FROM kavach_authorize('agt_w1', 'run', 'x', tokens_cost => 10);
SELECT is(row(allowed, code, policy_id)::text, format('(f,budget_exceeded,%s)', :'block'), 'past both: the block refuses')
  FROM kavach_authorize('agt_w1', 'run', 'x', tokens_cost => 11);
SELECT is(row(allowed, code, policy_id)::text, format('(t,budget_warning,%s)', :'warn'), 'a refused call charged neither')
  FROM kavach_authorize('agt_w1', 'run', 'x', tokens_cost => 10);
SELECT is(row(allowed, code, policy_id)::text, format('(f,budget_exceeded,%s)', :'block'), 'a call without cost too is refused by the block')
  FROM kavach_authorize('agt_w1', 'run', 'x');

SELECT pg_temp.agent('agt_w2');
SELECT kavach_create_policy(user_id => 'user_of_w2', limits => '{"max_calls_total": 1}', action => 'block') AS block \gset
SELECT kavach_create_policy(agent_id => 'agt_w2', limits => '{"max_calls_total": 1}', action => 'warn') AS warn \gset
SELECT is(code, 'allowed', 'one call fits') FROM kavach_authorize('agt_w2', 'run', 'x');
SELECT is(row(allowed, code, policy_id)::text, format('(f,budget_exceeded,%s)', :'block'), 'the same with the warn made last')
  FROM kavach_authorize('agt_w2', 'run', 'x');

-- Severity first: revoke, block, throttle.
SELECT pg_temp.agent('agt_s');
SELECT kavach_create_policy(agent_id => 'agt_s', limits => '{"max_calls_per_month": 1}', action => 'throttle') AS throttle,
       kavach_create_policy(user_id => 'user_of_s', limits => '{"max_calls_per_day": 1}', action => 'block') AS block,
       kavach_create_policy(all_agents => true, limits => '{"max_calls_per_hour": 1}', action => 'revoke') AS revoke \gset
SELECT kavach_update_policy(:'revoke', enabled => false);
SELECT code FROM kavach_authorize('agt_s', 'run', 'x');
SELECT is(row(a.code, a.policy_id, l.result, a.retry_at)::text, format('(budget_exceeded,%s,denied,"2026-04-01 00:00:00+00")', :'block'),
          'block before throttle, though the throttle is narrower and longer; retry_at is the latest end of both')
  FROM kavach_authorize('agt_s', 'run', 'x') a, pg_temp.row_of(a.audit_id) AS l;
SELECT kavach_update_policy(:'block', enabled => false);
SELECT is(row(a.code, a.policy_id, l.result, a.retry_at)::text, format('(budget_exceeded,%s,rate_limited,"2026-04-01 00:00:00+00")', :'throttle'),
          'a throttle alone is rate_limited')
  FROM kavach_authorize('agt_s', 'run', 'x') a, pg_temp.row_of(a.audit_id) AS l;
SELECT kavach_update_policy(:'block', enabled => true), kavach_update_policy(:'revoke', enabled => true);
SELECT is(row(code, policy_id)::text, format('(budget_exceeded,%s)', :'revoke'), 'revoke before both')
  FROM kavach_authorize('agt_s', 'run', 'x');
SELECT is(status, 'revoked', 'and it revokes') FROM kavach.agent WHERE agent_id = 'agt_s';
SELECT kavach_drop_policy(:'revoke');

-- Then the narrowest scope, then the longest window, then the policy_id: policies fall away in that order.
SELECT pg_temp.agent('agt_t', 'tenant_t');
SELECT code FROM kavach_authorize('agt_t', 'run', 'x', tokens_cost => 5);
CREATE TEMP TABLE rank (n int, policy_id text, what text);
INSERT INTO rank
  SELECT row_number() OVER (ORDER BY s.n, p.n DESC),
         kavach_create_policy(agent_id => CASE s.scope WHEN 'agent' THEN 'agt_t' END,
                              user_id => CASE s.scope WHEN 'user' THEN 'user_of_t' END,
                              tenant_id => CASE s.scope WHEN 'tenant' THEN 'tenant_t' END,
                              all_agents => s.scope = 'all',
                              limits => jsonb_build_object('max_tokens_cost_' || p.window_key, 5)),
         s.scope || ' ' || p.window_key
    FROM (VALUES (1, 'agent'), (2, 'user'), (3, 'tenant'), (4, 'all')) AS s (n, scope),
         (VALUES (1, 'per_hour'), (2, 'per_day'), (3, 'per_month'), (4, 'total')) AS p (n, window_key)
   ORDER BY random();
CREATE FUNCTION pg_temp.next_one() RETURNS text LANGUAGE plpgsql AS $$
DECLARE named text;
BEGIN
  SELECT r.what INTO named FROM kavach_authorize('agt_t', 'run', 'x', tokens_cost => 1) a JOIN rank r USING (policy_id);
  PERFORM kavach_drop_policy(policy_id) FROM rank WHERE what = named;
  RETURN named;
END $$;
SELECT is(pg_temp.next_one(), what, what || ' names the answer') FROM (SELECT what FROM rank ORDER BY n) AS ordered;

SELECT pg_temp.agent('agt_id');
SELECT count(kavach_create_policy(agent_id => 'agt_id', limits => '{"max_calls_total": 1}')) FROM generate_series(1, 6);
SELECT code FROM kavach_authorize('agt_id', 'run', 'x');
SELECT is(policy_id, (SELECT min(policy_id COLLATE "C") FROM kavach.budget_policy WHERE subject = 'agt_id'), 'all else equal: the first policy_id')
  FROM kavach_authorize('agt_id', 'run', 'x');

-- An `each` policy has the scope of its subject; within one policy the limit with the longest window decides.
SELECT pg_temp.agent('agt_e');
SELECT kavach_create_policy(each => 'agent', limits => '{"max_calls_per_hour": 1}') AS each_agent,
       kavach_create_policy(user_id => 'user_of_e', limits => '{"max_calls_total": 1}') AS named_user \gset
SELECT code FROM kavach_authorize('agt_e', 'run', 'x');
SELECT is(policy_id, :'each_agent', 'each agent is narrower than a user') FROM kavach_authorize('agt_e', 'run', 'x');
SELECT kavach_drop_policy(:'each_agent');

-- retry_at
SELECT pg_temp.agent('agt_r');
SELECT kavach_create_policy(agent_id => 'agt_r', limits => '{"max_tokens_cost_per_hour": 10, "max_tokens_cost_per_day": 15}', action => 'throttle') AS p \gset
SELECT code FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 8);
SELECT is(retry_at, '2026-03-10 13:00Z', 'the hour alone refuses: its end') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 3);
SELECT is(retry_at, '2026-03-11Z', 'hour and day refuse: the later end') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 8);
SELECT is(retry_at, NULL, 'more than the hour''s whole limit never fits') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 11);
SELECT is(retry_at, '2026-03-10 13:00Z', 'min_tokens decides what fits') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 100, min_tokens => 3);
SELECT is(retry_at, NULL, 'or never will') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 100, min_tokens => 11);
SELECT kavach_create_policy(agent_id => 'agt_r', limits => '{"max_tokens_cost_total": 10}', action => 'warn') AS warn \gset
SELECT is(retry_at, '2026-03-10 13:00Z', 'a warn does not refuse, its window does not matter') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 3);
SELECT kavach_update_policy(:'warn', action => 'throttle');
SELECT is(retry_at, NULL, 'a total that refuses has no end') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 3);
SELECT is(retry_at, NULL, 'no retry_at where admitted') FROM kavach_authorize('agt_r', 'run', 'x', tokens_cost => 2);

SELECT * FROM finish();
ROLLBACK;
