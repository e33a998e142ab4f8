-- check.sql: judges what a round of the fuzzer left behind.  Nobody else may be there.
-- Every row that it prints is a fault.  psql variable: report, a file.
\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
SET client_min_messages = warning;
SET TimeZone = 'UTC';
SET work_mem = '64MB';

\ir ../soak/usage.sql
\ir ../soak/rollups.sql

-- ---- the ledger fits its vocabulary ----

SELECT 'a ledger row outside of what is documented', l.*
  FROM ledger l
 WHERE NOT coalesce(
         batch > 0
         AND CASE kind
               WHEN 'authorize' THEN
                 CASE code
                   WHEN 'allowed' THEN result = 'allowed' AND policy_id IS NULL
                   WHEN 'budget_warning' THEN result = 'allowed' AND policy_id IS NOT NULL
                   WHEN 'budget_exceeded' THEN result <> 'allowed' AND policy_id IS NOT NULL
                   WHEN 'budget_pending' THEN result = 'rate_limited' AND policy_id IS NOT NULL
                   WHEN 'rate_limited' THEN result = 'rate_limited' AND policy_id IS NULL
                   ELSE code IN ('agent_not_found', 'agent_revoked', 'agent_expired', 'permission_denied',
                                 'argument_not_allowed', 'outside_time_window', 'ip_not_allowed')
                        AND result = 'denied' AND policy_id IS NULL END
                 AND result IN ('allowed', 'denied', 'rate_limited')
                 AND action IS NOT NULL AND resource IS NOT NULL AND settles IS NULL AND tokens_released IS NULL
                 AND (result = 'allowed') = (permission_id IS NOT NULL)
                 AND (code = 'agent_not_found') = (user_id IS NULL)
                 AND coalesce(tokens_requested BETWEEN 0 AND 1000000000000000, true)
                 AND coalesce(min_tokens BETWEEN 1 AND tokens_requested, min_tokens IS NULL)
                 AND CASE WHEN result <> 'allowed' THEN tokens_cost = 0
                          WHEN tokens_requested IS NULL THEN tokens_cost IS NULL
                          ELSE tokens_cost BETWEEN coalesce(min_tokens, tokens_requested) AND tokens_requested END
               WHEN 'usage' THEN
                 result = 'allowed' AND code IN ('recorded', 'over_budget')
                 AND user_id IS NOT NULL AND min_tokens IS NULL
                 AND (settles IS NULL) = (action IS NULL) AND (settles IS NULL) = (resource IS NULL)
                 AND tokens_requested BETWEEN 0 AND 1000000000000000
                 AND (settles IS NULL) = (tokens_released IS NULL)
                 AND tokens_cost = tokens_requested - coalesce(tokens_released, 0)
               WHEN 'adjustment' THEN
                 result = 'allowed' AND code IN ('recorded', 'over_budget')
                 AND user_id IS NOT NULL AND action IS NULL AND resource IS NULL AND settles IS NULL
                 AND octet_length(reason) BETWEEN 1 AND 2048
                 AND tokens_cost <> 0 AND tokens_cost = tokens_requested
                 AND tokens_cost BETWEEN -1000000000000000 AND 1000000000000000 END
         AND coalesce(octet_length(agent_id) BETWEEN 1 AND 255, false)
         AND coalesce(octet_length(user_id) BETWEEN 1 AND 255 AND user_id !~ '^agt_', true)
         AND coalesce(octet_length(tenant_id) BETWEEN 1 AND 255, true)
         AND coalesce(octet_length(action) BETWEEN 1 AND 255, true)
         AND coalesce(octet_length(resource) BETWEEN 1 AND 2048, true)
         AND coalesce(octet_length(request_id) BETWEEN 1 AND 255, true)
         AND coalesce(jsonb_typeof(arguments) = 'object', true)
         AND coalesce(jsonb_typeof(metadata) = 'object', true)
         AND ts >= '1970-01-01' AND ts < '10000-01-01'
         AND substr(id::text, 15, 1) = '7'
         AND kavach.uuid7_ts(id) = date_trunc('milliseconds', ts)
         AND num_nonnulls(provider, model, tokens_input, tokens_output, tokens_cache_read, tokens_cache_write, cost) = 0, false);

SELECT 'a settlement that does not fit', u.id
  FROM ledger u LEFT JOIN ledger a ON a.id = u.settles
 WHERE u.settles IS NOT NULL
   AND (a.kind = 'authorize' AND a.result = 'allowed' AND coalesce(a.tokens_cost, 0) = u.tokens_released
        AND (a.agent_id, a.user_id) = (u.agent_id, u.user_id) AND a.tenant_id IS NOT DISTINCT FROM u.tenant_id) IS NOT TRUE;

-- ---- so do the other tables ----

SELECT 'an agent outside of what is documented', a.*
  FROM kavach.agent a
 WHERE NOT (octet_length(agent_id) BETWEEN 1 AND 255 AND octet_length(user_id) BETWEEN 1 AND 255 AND user_id !~ '^agt_'
            AND coalesce(octet_length(tenant_id) BETWEEN 1 AND 255, true) AND coalesce(octet_length(name) BETWEEN 1 AND 255, true)
            AND coalesce(octet_length(status_reason) BETWEEN 1 AND 2048, true) AND jsonb_typeof(metadata) = 'object');

SELECT 'a permission that would not be granted', p.*
  FROM kavach.permission p WHERE NOT kavach.check_permission(resource, actions, constraints);

SELECT 'a permission of nobody', p.*
  FROM kavach.permission p WHERE NOT EXISTS (SELECT FROM kavach.agent a WHERE a.agent_id = p.agent_id);

SELECT 'a policy that would not be created', p.*
  FROM kavach.budget_policy p
 WHERE NOT EXISTS (SELECT FROM kavach.budget_limit l WHERE l.policy_id = p.policy_id)
    OR octet_length(subject) NOT BETWEEN 1 AND 255
    OR (scope = 'agent' AND NOT each AND NOT EXISTS (SELECT FROM kavach.agent a WHERE a.agent_id = subject));

-- ---- limits that nobody has changed, of subjects that are only asked for ----

SELECT 'a limit was passed', s.policy_id, s.scope, s.subject, s.measure, s.period, s.start, s.amount, max(s.used)
  FROM step s JOIN fuzz.guarded USING (policy_id)
 WHERE s.used > s.amount GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;

SELECT 'a rate per hour was passed', u.subject, u.start, u.calls
  FROM usage u JOIN kavach.permission p ON u.scope = 'permission' AND p.permission_id::text = u.subject
 WHERE u.calls > (p.constraints ->> 'max_calls_per_hour')::bigint;

-- ---- counters and reports ----

SELECT * FROM pg_temp.wrong_counters('as the calls left them');

SELECT 'the report is not the sum of the ledger', r.tokens_cost, l.tokens_cost
  FROM (SELECT sum(tokens_cost) AS tokens_cost, sum(calls) AS calls FROM kavach_cost_by_agent(NULL, NULL)) r,
       (SELECT sum(tokens_cost) AS tokens_cost, count(*) FILTER (WHERE kind = 'authorize') AS calls FROM ledger) l
 WHERE (r.tokens_cost, r.calls) <> (l.tokens_cost, l.calls);

\o /dev/null
SELECT kavach_reload_counters();
SELECT format('SELECT kavach_adjust(%1$L, 1, ''one up''), kavach_adjust(%1$L, -1, ''one down'')', agent_id)
  FROM kavach.agent LIMIT 200 \gexec
\o
DROP TABLE ledger, charge, usage, subject, bound;
ALTER TABLE step RENAME TO judged;
DROP FUNCTION pg_temp.wrong_counters;
\ir ../soak/usage.sql
SELECT * FROM pg_temp.wrong_counters('read again');
SELECT 'no counter is in memory: there is nothing to compare'
 WHERE NOT EXISTS (SELECT FROM kavach.counters WHERE (tokens_used, calls_used) <> (0, 0));

-- ---- what the round was like ----

\o :report
SELECT format('%s decisions, %s admitted; %s usage rows, %s of them settle; %s agents, %s policies, %s months; %s of %s guarded limits reached',
              count(*) FILTER (WHERE kind = 'authorize'), count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed'),
              count(*) FILTER (WHERE kind = 'usage'), count(settles),
              (SELECT count(*) FROM kavach.agent), (SELECT count(*) FROM kavach.budget_policy),
              count(DISTINCT date_trunc('month', ts)),
              (SELECT count(DISTINCT (policy_id, measure, period)) FROM judged JOIN fuzz.guarded USING (policy_id) WHERE used = amount),
              (SELECT count(*) FROM kavach.budget_limit JOIN fuzz.guarded USING (policy_id)))
  FROM ledger;
\o
