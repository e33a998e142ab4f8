-- budget_status.sql: the view against a sum over the ledger, for every scope, measure and window.
BEGIN;
SELECT plan(16);
SET LOCAL timezone = 'Asia/Kathmandu';
\ir workload.psql
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';
-- The workload has one call in an hour at most: here everybody makes one.
SELECT count(kavach_update_policy(policy_id, enabled => false)) FROM kavach.budget_policy;
SELECT count(kavach_authorize(agent_id, 'run', 'mcp:tool:9', tokens_cost => 3)) FROM kavach.agent;
SELECT count(kavach_update_policy(policy_id, enabled => true)) FROM kavach.budget_policy;

-- A policy of every kind, with every limit; the amounts are near to what was used.
SELECT count(kavach_create_policy(
         agent_id => CASE s WHEN 'agent' THEN 'agt_3' END, user_id => CASE s WHEN 'user' THEN 'user_0' END,
         tenant_id => CASE s WHEN 'tenant' THEN 'tenant_1' END, each => substring(s FROM 'each (.*)'), all_agents => s = 'all',
         action => CASE WHEN s IN ('each agent', 'each tenant') THEN 'warn' ELSE 'throttle' END,
         limits => '{"max_tokens_cost_per_hour": 50, "max_tokens_cost_per_day": 300, "max_tokens_cost_per_month": 3000, "max_tokens_cost_total": 9000,
                     "max_calls_per_hour": 1, "max_calls_per_day": 2, "max_calls_per_month": 20, "max_calls_total": 100}'))
  FROM unnest('{agent,user,tenant,all,each agent,each user,each tenant}'::text[]) AS s;
-- To which the `each` policies partly yield.
SELECT kavach_create_policy(agent_id => 'agt_4', limits => '{"max_tokens_cost_total": 10}', action => 'warn'),
       kavach_create_policy(agent_id => 'agt_5', limits => '{"max_tokens_cost_total": 10}', action => 'block'),
       kavach_create_policy(user_id => 'user_1', limits => '{"max_calls_per_month": 3}', action => 'warn') AS off \gset
SELECT kavach_update_policy(:'off', enabled => false);

CREATE TEMP TABLE truth AS
WITH unit AS (  -- what each row counts for whom
  SELECT s.scope, s.subject, m.measure, a.ts, CASE m.measure WHEN 'tokens' THEN coalesce(a.tokens_cost, 0) ELSE (a.kind = 'authorize' AND a.result = 'allowed')::int END AS n,
         (a.kind = 'authorize' AND a.result = 'allowed') OR a.kind <> 'authorize' AS used
    FROM kavach.audit_log a,
         LATERAL (VALUES ('agent', a.agent_id), ('user', a.user_id), ('tenant', a.tenant_id), ('all', NULL)) AS s (scope, subject),
         (VALUES ('tokens'), ('calls')) AS m (measure)),
period AS (
  SELECT p.period, p.since, p.since + len AS until
    FROM (VALUES ('hour', timestamptz '2026-03-10 12:00Z', interval '1 hour'), ('day', '2026-03-10Z', '1 day'), ('month', '2026-03-01Z', '31 days'),
                 ('total', NULL, NULL)) AS p (period, since, len)),
wanted AS (  -- a row per policy, limit and subject
  SELECT p.policy_id, p.scope, p.each, p.action, p.enabled, l.measure, l.period, l.amount,
         CASE WHEN p.each THEN s.subject ELSE p.subject END AS subject
    FROM kavach.budget_policy p JOIN kavach.budget_limit l USING (policy_id)
    LEFT JOIN LATERAL (SELECT DISTINCT u.subject FROM unit u JOIN period w ON w.period = l.period
                        WHERE p.each AND u.scope = p.scope AND u.subject IS NOT NULL AND u.used
                          AND u.ts >= coalesce(w.since, '-infinity') AND u.ts < coalesce(w.until, 'infinity')) AS s ON true
   WHERE NOT (p.each AND s.subject IS NULL)
     AND NOT (p.each AND EXISTS (SELECT FROM kavach.budget_policy n JOIN kavach.budget_limit nl USING (policy_id)
                                  WHERE NOT n.each AND n.enabled AND n.scope = p.scope AND n.subject = s.subject
                                    AND nl.measure = l.measure AND nl.period = l.period AND (n.action = 'warn') = (p.action = 'warn'))))
SELECT w.policy_id, w.scope, w.subject, w.measure, w.period, p.since AS period_start, p.until AS period_end, w.amount,
       u.used, greatest(w.amount - u.used, 0) AS remaining, w.action,
       CASE WHEN NOT w.enabled THEN 'disabled' WHEN u.used >= w.amount THEN 'triggered' ELSE 'active' END AS status
  FROM wanted w JOIN period p USING (period),
       LATERAL (SELECT coalesce(sum(n), 0)::numeric AS used FROM unit u
                 WHERE u.scope = w.scope AND u.subject IS NOT DISTINCT FROM w.subject AND u.measure = w.measure
                   AND u.ts >= coalesce(p.since, '-infinity') AND u.ts < coalesce(p.until, 'infinity')) AS u;

CREATE TEMP VIEW told AS
  SELECT s.policy_id, s.scope, s.subject, s.measure, s.period, CASE WHEN s.period <> 'total' THEN s.period_start END AS period_start,
         s.period_end, s.amount, s.used, s.remaining, s.action, s.status, p.each
    FROM kavach.budget_status s JOIN kavach.budget_policy p USING (policy_id);
CREATE TEMP VIEW true_ AS SELECT t.*, p.each FROM truth t JOIN kavach.budget_policy p USING (policy_id);
-- Zeros would agree with anything.
SELECT is((SELECT count(DISTINCT (scope, each, measure, period)) FROM true_ WHERE used <> 0), 7 * 2 * 4::bigint, 'something is used of every scope, measure and window');
SELECT bag_eq(format('SELECT * FROM told WHERE scope = %L AND NOT each', s), format('SELECT * FROM true_ WHERE scope = %L AND NOT each', s), s || ': as the ledger says')
  FROM (VALUES ('agent'), ('user'), ('tenant'), ('all')) AS t (s);
SELECT bag_eq(format('SELECT * FROM told WHERE scope = %L AND each AND used <> 0', s), format('SELECT * FROM true_ WHERE scope = %L AND each AND used <> 0', s), 'each ' || s || ': as the ledger says')
  FROM (VALUES ('agent'), ('user'), ('tenant')) AS t (s);
SELECT cmp_ok(count(*), '>=', least_, what)
  FROM (VALUES ('triggered', 5::bigint, 'limits triggered'), ('active', 5, 'limits active'), ('disabled', 1, 'limits disabled')) AS t (status, least_, what)
  JOIN told USING (status) GROUP BY what, least_;
SELECT is(count(*), 0::bigint, 'a limit that yields has no row')
  FROM told WHERE each AND ((scope, subject, measure, period) = ('agent', 'agt_4', 'tokens', 'total') OR (scope, subject) = ('user', 'user_0'));
SELECT cmp_ok(count(*), '>', 0::bigint, 'one that yields to the other kind only has') FROM told WHERE each AND (scope, subject, measure, period) = ('agent', 'agt_5', 'tokens', 'total');
SELECT is(count(*), 0::bigint, 'remaining is never below zero') FROM told WHERE remaining < 0;

-- It follows kavach.clock into another window.
SET LOCAL kavach.clock = '2026-07-01 00:00:00+00';
SELECT is(sum(used), 0::numeric, 'in a month without calls only totals are used') FROM told WHERE period <> 'total';
SELECT is(count(*), 0::bigint, 'and no subject of an `each` has a row for it') FROM told WHERE period <> 'total' AND each;

SELECT * FROM finish();
ROLLBACK;
