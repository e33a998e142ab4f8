-- oracle.sql: a thousand random calls against policies of every kind, each judged beforehand by a query that knows only
-- the rules and the ledger.
BEGIN;
SELECT plan(9);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SELECT setseed(0.44);

SELECT count(kavach_create_agent('agt_' || n, 'user_' || n % 3, CASE WHEN n % 4 > 0 THEN 'tenant_' || n % 2 END,
                                 permissions => '[{"resource": "*", "actions": ["*"]}]')) FROM generate_series(1, 6) AS n;

-- When a call was charged: limits count there what its settlement gives back.
CREATE TEMP TABLE charged (id uuid PRIMARY KEY, ts timestamptz);

-- What the next call of this agent must be told.
CREATE FUNCTION pg_temp.oracle(agent text, cost bigint, least_ bigint, now timestamptz, OUT code text, OUT policy_id text, OUT granted bigint,
                               OUT tokens_left bigint, OUT calls_left bigint, OUT retry_at timestamptz, OUT revoked boolean)
LANGUAGE sql AS $$
WITH window_ (period, since, until, length) AS (
  SELECT p, CASE p WHEN 'total' THEN '-infinity' ELSE date_trunc(p, now) END, CASE p WHEN 'total' THEN NULL ELSE date_trunc(p, now) + ('1 ' || p)::interval END, n
    FROM unnest('{hour,day,month}'::text[]) WITH ORDINALITY AS w (p, n)
  UNION ALL VALUES ('total', '-infinity'::timestamptz, NULL::timestamptz, 4)),
scope (scope, subject, width) AS (
  SELECT s.* FROM kavach.agent a, LATERAL (VALUES ('agent', a.agent_id, 1), ('user', a.user_id, 2), ('tenant', a.tenant_id, 3), ('all', '', 4)) AS s
   WHERE a.agent_id = agent AND s.column2 IS NOT NULL),
applies AS (
  SELECT p.policy_id, p.action, s.width, w.length, w.until, l.measure, l.amount,
         l.amount - (SELECT CASE l.measure WHEN 'tokens' THEN coalesce(sum(e.tokens_cost), 0)
                                           ELSE count(*) FILTER (WHERE e.kind = 'authorize' AND e.result = 'allowed') END
                       FROM kavach.audit_log e
                       LEFT JOIN charged c ON c.id = e.settles AND e.tokens_cost < 0
                      CROSS JOIN LATERAL (SELECT coalesce(c.ts, e.ts) AS at) AS counts
                      WHERE at >= w.since AND (at < w.until OR w.until IS NULL)
                        AND CASE p.scope WHEN 'agent' THEN e.agent_id = s.subject WHEN 'user' THEN e.user_id = s.subject
                                         WHEN 'tenant' THEN e.tenant_id = s.subject ELSE true END) AS left_
    FROM kavach.budget_policy p JOIN kavach.budget_limit l USING (policy_id) JOIN scope s USING (scope) JOIN window_ w USING (period)
   WHERE p.enabled AND (p.each OR p.scope = 'all' OR p.subject = s.subject)
     AND NOT (p.each AND EXISTS (SELECT FROM kavach.budget_policy n JOIN kavach.budget_limit nl USING (policy_id)
                                  WHERE n.enabled AND NOT n.each AND n.scope = p.scope AND n.subject = s.subject AND nl.measure = l.measure
                                    AND nl.period = l.period AND (n.action = 'warn') = (p.action = 'warn')))),
want AS (SELECT CASE WHEN least_ IS NULL THEN cost ELSE least(cost, (SELECT min(left_) FROM applies WHERE measure = 'tokens' AND action <> 'warn')) END AS grant_),
passed AS (
  SELECT a.*, array_position('{revoke,block,throttle,warn}', action) AS rank,
         until IS NULL OR (CASE measure WHEN 'tokens' THEN coalesce(least_, cost, 1) ELSE 1 END) > amount AS never
    FROM applies a, want
   WHERE CASE WHEN measure = 'calls' THEN left_ < 1
              WHEN coalesce(cost, 0) = 0 THEN left_ <= 0
              WHEN action = 'warn' THEN greatest(grant_, least_) > left_
              ELSE coalesce(least_, cost) > left_ END),
refused AS (SELECT * FROM passed WHERE action <> 'warn'),
says AS (SELECT p.* FROM passed p ORDER BY rank, width, length DESC, p.policy_id COLLATE "C" LIMIT 1)
SELECT CASE WHEN EXISTS (SELECT FROM refused) THEN 'budget_exceeded' WHEN EXISTS (SELECT FROM passed) THEN 'budget_warning' ELSE 'allowed' END,
       (SELECT says.policy_id FROM says),
       CASE WHEN NOT EXISTS (SELECT FROM refused) THEN grant_ END,
       (SELECT CASE WHEN min(left_) IS NOT NULL THEN greatest(min(left_), 0) END FROM (SELECT left_ - CASE WHEN EXISTS (SELECT FROM refused) THEN 0 ELSE coalesce(grant_, 0) END AS left_
                                               FROM applies WHERE measure = 'tokens' AND action <> 'warn') AS t),
       (SELECT CASE WHEN min(left_) IS NOT NULL THEN greatest(min(left_), 0) END FROM (SELECT left_ - CASE WHEN EXISTS (SELECT FROM refused) THEN 0 ELSE 1 END AS left_
                                               FROM applies WHERE measure = 'calls' AND action <> 'warn') AS t),
       (SELECT CASE WHEN NOT bool_or(never) THEN max(until) END FROM refused),
       EXISTS (SELECT FROM says WHERE rank = 1)
  FROM want
$$;

CREATE TEMP TABLE outcome (n int, agent text, cost bigint, least_ bigint, expected text, told text, advised text, ledger text, revoked boolean, expect_revoked boolean);
DO $$
DECLARE
  o record; a record; c record; l record;
  caller text; cost bigint; least_ bigint; at timestamptz := '2026-01-01Z'; policy text; policies text[] := '{}'; key text;
  keys text[] := '{max_tokens_cost_per_hour,max_tokens_cost_per_day,max_tokens_cost_per_month,max_tokens_cost_total,max_calls_per_hour,max_calls_per_day,max_calls_per_month,max_calls_total}';
  size int[] := '{150,500,4000,20000,4,15,200,600}';
  i int;
BEGIN
  FOR n IN 1 .. 1000 LOOP
    at := at + CASE WHEN random() < 0.1 THEN interval '50 hours' ELSE interval '40 minutes' END * random();
    PERFORM set_config('kavach.clock', at::text, true);
    -- now and then a policy comes, changes or goes
    IF random() < 0.25 THEN
      i := 1 + floor(random() * 8);
      key := keys[i];
      CASE floor(random() * 8)
        WHEN 0 THEN policies := policies || kavach_create_policy(agent_id => 'agt_' || 1 + floor(random() * 6), limits => jsonb_build_object(key, 1 + floor(random() * size[i])), action => (ARRAY['warn','throttle','block','revoke'])[1 + floor(random() * 4)]);
        WHEN 1 THEN policies := policies || kavach_create_policy(user_id => 'user_' || floor(random() * 3), limits => jsonb_build_object(key, 1 + floor(random() * size[i] * 2)), action => (ARRAY['warn','throttle','block','revoke'])[1 + floor(random() * 4)]);
        WHEN 2 THEN policies := policies || kavach_create_policy(tenant_id => 'tenant_' || floor(random() * 2), limits => jsonb_build_object(key, 1 + floor(random() * size[i] * 3)), action => (ARRAY['warn','throttle','block','revoke'])[1 + floor(random() * 4)]);
        WHEN 3 THEN policies := policies || kavach_create_policy(all_agents => true, limits => jsonb_build_object(key, 1 + floor(random() * size[i] * 5)), action => (ARRAY['warn','throttle','block','revoke'])[1 + floor(random() * 4)]);
        WHEN 4 THEN policies := policies || kavach_create_policy(each => (ARRAY['agent','user','tenant'])[1 + floor(random() * 3)], limits => jsonb_build_object(key, 1 + floor(random() * size[i])), action => (ARRAY['warn','throttle','block','revoke'])[1 + floor(random() * 4)]);
        ELSE
          policy := policies[1 + floor(random() * cardinality(policies))];
          IF random() < 0.4 OR cardinality(policies) > 6 THEN
            PERFORM kavach_drop_policy(policy) WHERE policy IS NOT NULL;
            policies := array_remove(policies, policy);
          ELSIF policy IS NOT NULL THEN
            PERFORM kavach_update_policy(policy, jsonb_build_object(key, 1 + floor(random() * size[i] * 2)), enabled => random() < 0.8);
          END IF;
      END CASE;
    END IF;
    caller := 'agt_' || 1 + floor(random() * 6);
    cost := CASE WHEN random() < 0.15 THEN NULL WHEN random() < 0.1 THEN 0 ELSE 1 + floor(random() * random() * 150) END;
    least_ := CASE WHEN cost > 0 AND random() < 0.6 THEN 1 + floor(random() * random() * cost) END;
    SELECT * INTO o FROM pg_temp.oracle(caller, cost, least_, at);
    SELECT * INTO c FROM kavach_check_budget(caller, cost);
    SELECT * INTO a FROM kavach_authorize(caller, 'run', 'x', cost, min_tokens => least_);
    INSERT INTO charged VALUES (a.audit_id, at);
    SELECT * INTO l FROM kavach.audit_log WHERE id = a.audit_id;
    INSERT INTO outcome VALUES (n, caller, cost, least_, row(o.code, o.policy_id, o.granted, o.tokens_left, o.calls_left, o.retry_at)::text,
      row(a.code, a.policy_id, CASE WHEN a.allowed THEN a.tokens_granted END, a.tokens_remaining, a.calls_remaining, a.retry_at)::text,
      CASE WHEN least_ IS NULL AND row(c.allowed, c.code, c.policy_id, c.retry_at) IS DISTINCT FROM row(a.allowed, a.code, a.policy_id, a.retry_at) THEN c::text END,
      CASE WHEN row(l.code, l.policy_id, l.tokens_cost, l.tokens_requested, l.min_tokens, l.ts)
                IS DISTINCT FROM row(o.code, o.policy_id, CASE WHEN a.allowed THEN o.granted ELSE 0 END, cost, least_, at) THEN l::text END,
      (SELECT status = 'revoked' FROM kavach.agent WHERE agent_id = caller), o.revoked);
    PERFORM kavach_restore_agent(caller);
    -- settled for less, for more or not at all, at once or later; usage alone; adjustments
    IF a.allowed AND random() < 0.5 THEN
      IF random() < 0.3 THEN
        at := at + CASE WHEN random() < 0.2 THEN interval '40 days' ELSE interval '2 hours' END * random();
        PERFORM set_config('kavach.clock', at::text, true);
      END IF;
      PERFORM kavach_record_usage(caller, floor(random() * 1.3 * coalesce(a.tokens_granted, 50))::bigint, a.audit_id);
    ELSIF random() < 0.1 THEN PERFORM kavach_record_usage(caller, floor(random() * 60)::bigint);
    ELSIF random() < 0.05 THEN PERFORM kavach_adjust(caller, floor(random() * 100)::bigint * 2 - 141, 'random');
    END IF;
  END LOOP;
END $$;

SELECT is((SELECT format('call %s of %s (%s, %s): expected %s, told %s', n, agent, cost, least_, expected, told) FROM outcome WHERE told IS DISTINCT FROM expected ORDER BY n LIMIT 1),
          NULL, 'every answer is the oracle''s');
SELECT is((SELECT format('call %s: %s', n, advised) FROM outcome WHERE advised IS NOT NULL ORDER BY n LIMIT 1), NULL, 'check_budget has foretold it');
SELECT is((SELECT format('call %s: %s', n, ledger) FROM outcome WHERE ledger IS NOT NULL ORDER BY n LIMIT 1), NULL, 'the ledger has it');
SELECT is((SELECT format('call %s: %s, expected %s', n, revoked, expect_revoked) FROM outcome WHERE revoked IS DISTINCT FROM expect_revoked ORDER BY n LIMIT 1),
          NULL, 'the caller is revoked where a revoke policy refuses, and only there');
-- The oracle has been asked everything.
SELECT cmp_ok(n, '>=', 40::bigint, what)
  FROM (SELECT count(*) FILTER (WHERE expected LIKE '(allowed%') AS admitted, count(*) FILTER (WHERE expected LIKE '(budget_warning%') AS warned,
               count(*) FILTER (WHERE expected LIKE '(budget_exceeded%,)') AS "refused for good", count(*) FILTER (WHERE expected LIKE '(budget_exceeded%")') AS "refused for a while",
               count(*) FILTER (WHERE least_ < cost AND expected NOT LIKE '(budget_exceeded%' AND nullif(split_part(expected, ',', 3), '')::bigint < cost) AS "granted in part"
          FROM outcome) AS o, LATERAL (SELECT key AS what, value::bigint AS n FROM jsonb_each_text(to_jsonb(o))) AS w;

SELECT * FROM finish();
ROLLBACK;
