-- setup.sql: a database to measure in.  psql variables: agents, policies (in
-- all: tenant, all agents, each user, each agent, and then such as bind nobody
-- who calls), rows (already in either ledger), library (of uuid7.c).
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION kavach;

-- Agent i of user i % 100 has permission i.
INSERT INTO kavach.agent (agent_id, user_id, tenant_id)
SELECT 4000000000 + i, 5000000000 + i % 100, 'tenant_1'
  FROM generate_series(1, :agents) i;
INSERT INTO kavach.permission (agent_id, resource, actions)
SELECT 4000000000 + i, 'mcp:openai:*', '{execute}'
  FROM generate_series(1, :agents) i;

-- Limits that are never reached.
SELECT CASE i
       WHEN 1 THEN kavach_create_policy(tenant_id => 'tenant_1', limits => '{"max_tokens_cost_per_month": 100000000000000}')
       WHEN 2 THEN kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 1000000000000000}')
       WHEN 3 THEN kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_day": 100000000000000}')
       WHEN 4 THEN kavach_create_policy(each => 'agent', limits => '{"max_tokens_cost_per_hour": 100000000000000, "max_calls_per_hour": 1000000000000}')
       ELSE kavach_create_policy(user_id => 'user_' || i, limits => '{"max_tokens_cost_per_day": 100000000000000}')
       END
  FROM generate_series(1, :policies) i
\g /dev/null

-- The first call makes the ledger's partition; the INSERT gets one like it.
SELECT FROM kavach_authorize('4000000001', 'execute', 'mcp:openai:chat', tokens_cost => 150)
\g /dev/null

CREATE SCHEMA bench;
CREATE FUNCTION bench.uuid7(timestamptz)
RETURNS uuid
LANGUAGE c VOLATILE STRICT PARALLEL SAFE
AS :'library', 'bench_uuid7';

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

INSERT INTO kavach.audit_log
  (id, ts, kind, agent_id, user_id, tenant_id, action, resource, result, code,
   permission_id, tokens_requested, tokens_cost)
SELECT bench.uuid7(ts), ts, 'authorize', 4000000001 + i % :agents, 5000000000 + (1 + i % :agents) % 100, 'tenant_1',
       'execute', 'mcp:openai:chat', 'allowed', 'allowed', 1 + i % :agents, 150, 150
  FROM (SELECT i, m + (clock_timestamp() - m) * (i / (1.0 + :rows)) AS ts
          FROM generate_series(1, :rows) i, date_trunc('month', clock_timestamp(), 'UTC') m) r;
INSERT INTO bench.audit_log SELECT * FROM kavach.audit_log;
SELECT kavach_reload_counters()
\g /dev/null
