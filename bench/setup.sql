-- setup.sql: a database to measure in.  psql variables: agents, policies (in
-- all: tenant, all agents, each user, each agent, and then such as bind nobody
-- who calls), rows (already in this month of either ledger), months (before this
-- one), constraints (of each permission), users and tenants, library (of uuid7.c).
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION kavach;

-- Agent i of user i % users has permission i.
INSERT INTO kavach.agent (agent_id, user_id, tenant_id)
SELECT 4000000000 + i, 5000000000 + i % :users, 'tenant_' || 1 + i % :users % :tenants
  FROM generate_series(1, :agents) i;
INSERT INTO kavach.permission (agent_id, resource, actions, constraints)
SELECT 4000000000 + i, 'mcp:openai:*', '{execute}', :'constraints'
  FROM generate_series(1, :agents) i;

-- Limits that are never reached.
SELECT CASE i
       WHEN 1 THEN kavach_create_policy(tenant_id => 'tenant_1', limits => '{"max_tokens_cost_per_month": 100000000000000}')
       WHEN 2 THEN kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 1000000000000000}')
       WHEN 3 THEN kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_day": 100000000000000}')
       WHEN 4 THEN kavach_create_policy(each => 'agent', limits => '{"max_tokens_cost_per_hour": 100000000000000, "max_calls_per_hour": 1000000000000}')
       END
  FROM generate_series(1, least(:policies, 4)) i
\g /dev/null
INSERT INTO kavach.budget_policy (policy_id, scope, subject)
SELECT 'pol_' || i, 'user', 'user_' || i
  FROM generate_series(5, :policies) i;
INSERT INTO kavach.budget_limit (policy_id, measure, period, amount)
SELECT 'pol_' || i, 'tokens', 'day', 100000000000000
  FROM generate_series(5, :policies) i;

CREATE SCHEMA bench;
CREATE FUNCTION bench.uuid7(timestamptz)
RETURNS uuid
LANGUAGE c VOLATILE STRICT PARALLEL SAFE
AS :'library', 'bench_uuid7';

-- Earlier months, in each 250 calls that were settled.
SELECT :months > 0 AS has_months
\gset
\if :has_months
SELECT kavach_create_months((month - interval '1 month' * :months)::date, (month - interval '1 month')::date)
  FROM date_trunc('month', now()) month
\g /dev/null
WITH call AS MATERIALIZED (
  SELECT 1 + i % :agents AS n, ts, bench.uuid7(ts) AS id
    FROM generate_series(1, :months) m,
         generate_series(1, 250) i,
         LATERAL (SELECT date_trunc('month', now()) - interval '1 month' * m + interval '2 hours' * i AS ts) t
)
INSERT INTO kavach.audit_log
  (id, ts, kind, agent_id, user_id, tenant_id, action, resource, result, code,
   permission_id, tokens_requested, tokens_released, tokens_cost, settles, request_id)
SELECT id, ts, 'authorize', 4000000000 + n, 5000000000 + n % 100, 'tenant_1', 'execute', 'mcp:openai:chat',
       'allowed', 'allowed', n, 150, NULL, 150, NULL, id
  FROM call
 UNION ALL
SELECT bench.uuid7(ts + interval '1 min'), ts + interval '1 min',
       'usage', 4000000000 + n, 5000000000 + n % 100, 'tenant_1', 'execute', 'mcp:openai:chat',
       'allowed', 'recorded', NULL, 134, 150, -16, id, id
  FROM call;
VACUUM ANALYZE kavach.audit_log;
\endif

-- The first call makes the ledger's partition; the INSERT gets one like it.
SELECT FROM kavach_authorize('4000000001', 'execute', 'mcp:openai:chat', tokens_cost => 150)
\g /dev/null

CREATE TABLE bench.audit_log (LIKE kavach.audit_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS)
  PARTITION BY RANGE (ts);
DO $$
DECLARE
  p record;
BEGIN
  FOR p IN
    SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bound
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'kavach.audit_log'::regclass
  LOOP
    EXECUTE format('CREATE TABLE bench.%1$I (LIKE kavach.%1$I INCLUDING ALL)', p.relname);
    EXECUTE format('ALTER TABLE bench.audit_log ATTACH PARTITION bench.%I %s', p.relname, p.bound);
  END LOOP;
END
$$;

INSERT INTO bench.audit_log SELECT * FROM kavach.audit_log;
\ir rows.sql
SELECT kavach_reload_counters()
\g /dev/null
