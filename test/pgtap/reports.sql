-- reports.sql: every report is a sum over the ledger, and they all agree.
BEGIN;
SELECT plan(52);
SET LOCAL timezone = 'UTC';
\ir workload.psql

SELECT cmp_ok(n, '>', 0::bigint, 'the workload has ' || what)
  FROM (SELECT count(*) FILTER (WHERE code = 'budget_exceeded' AND result = 'denied') AS "blocked calls",
               count(*) FILTER (WHERE code = 'budget_exceeded' AND result = 'rate_limited') AS "throttled calls",
               count(*) FILTER (WHERE code = 'agent_not_found') AS "unknown agents",
               count(*) FILTER (WHERE code = 'agent_revoked') AS "revoked agents",
               count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed' AND tokens_requested IS NULL) AS "calls without cost",
               count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed' AND tokens_cost < tokens_requested) AS "partial grants",
               count(*) FILTER (WHERE settles IS NOT NULL AND tokens_cost < 0) AS "refunds",
               count(*) FILTER (WHERE settles IS NOT NULL AND tokens_cost > 0) AS "surcharges",
               count(*) FILTER (WHERE kind = 'usage' AND settles IS NULL) AS "usage alone",
               count(*) FILTER (WHERE kind = 'adjustment') AS "adjustments"
          FROM kavach.audit_log) AS l, LATERAL (SELECT key AS what, value::bigint AS n FROM jsonb_each_text(to_jsonb(l))) AS w;

-- What a report must say, from the rows alone.
CREATE FUNCTION pg_temp.truth(key text, since timestamptz DEFAULT '-infinity', until timestamptz DEFAULT 'infinity', cond text DEFAULT 'true')
RETURNS TABLE (k text, calls bigint, denied bigint, without_cost bigint, cost numeric) LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY EXECUTE format(
    'SELECT (%s)::text,
            count(CASE WHEN kind = ''authorize'' THEN 1 END),
            count(CASE WHEN kind = ''authorize'' AND result IN (''denied'', ''rate_limited'') THEN 1 END),
            count(CASE WHEN kind = ''authorize'' AND result = ''allowed'' AND tokens_requested IS NULL THEN 1 END),
            sum(coalesce(tokens_cost, 0))
       FROM kavach.audit_log WHERE ts >= $1 AND ts < $2 AND %s GROUP BY 1 ORDER BY 1', key, cond) USING since, until;
END $$;

-- A range whose ends are instants of rows: the first belongs to it, the last does not.
SELECT ts AS since FROM kavach.audit_log ORDER BY ts OFFSET 100 LIMIT 1 \gset
SELECT ts AS until FROM kavach.audit_log ORDER BY ts OFFSET 400 LIMIT 1 \gset
SELECT results_eq(
  format('SELECT agent_id, calls, denied, calls_without_cost, tokens_cost FROM kavach_cost_by_agent(%L, %L) ORDER BY 1', :'since', :'until'),
  format('SELECT * FROM pg_temp.truth(%L, %L, %L)', 'CASE WHEN user_id IS NOT NULL THEN agent_id END', :'since', :'until'), 'cost_by_agent of a range');
SELECT results_eq(
  format('SELECT user_id, calls, denied, calls_without_cost, tokens_cost FROM kavach_cost_by_user(%L, %L) WHERE user_id IS NOT NULL ORDER BY 1', :'since', :'until'),
  format('SELECT * FROM pg_temp.truth(%L, %L, %L) WHERE k IS NOT NULL', 'user_id', :'since', :'until'), 'cost_by_user of a range');
SELECT results_eq(
  format('SELECT day::text, calls, denied, calls_without_cost, tokens_cost FROM kavach_cost_by_day(NULL, %L, %L) ORDER BY 1', :'since', :'until'),
  format('SELECT * FROM pg_temp.truth(%L, %L, %L)', '(ts AT TIME ZONE ''UTC'')::date', :'since', :'until'), 'cost_by_day of a range');
SELECT results_eq(
  format('SELECT day::text, calls, denied, calls_without_cost, tokens_cost FROM kavach_cost_by_day(%L, %L, %L) ORDER BY 1', 'agt_3', :'since', :'until'),
  format('SELECT * FROM pg_temp.truth(%L, %L, %L, %L)', '(ts AT TIME ZONE ''UTC'')::date', :'since', :'until', 'agent_id = ''agt_3'''), 'cost_by_day of one agent');
SELECT results_eq('SELECT agent_id, calls, denied, calls_without_cost, tokens_cost FROM kavach_cost_by_agent(NULL, NULL) ORDER BY 1',
                  $$SELECT * FROM pg_temp.truth('CASE WHEN user_id IS NOT NULL THEN agent_id END')$$, 'cost_by_agent without bounds');
SELECT results_eq('SELECT agent_id, calls, denied, calls_without_cost, tokens_cost FROM kavach.usage_by_agent ORDER BY 1',
                  $$SELECT * FROM pg_temp.truth('CASE WHEN user_id IS NOT NULL THEN agent_id END')$$, 'usage_by_agent');
SELECT results_eq('SELECT user_id, calls, denied, calls_without_cost, tokens_cost FROM kavach.usage_by_user WHERE user_id IS NOT NULL ORDER BY 1',
                  $$SELECT * FROM pg_temp.truth('user_id') WHERE k IS NOT NULL$$, 'usage_by_user');
SELECT results_eq('SELECT day::text, calls, denied, calls_without_cost, tokens_cost FROM kavach.usage_by_day ORDER BY 1',
                  $$SELECT * FROM pg_temp.truth('(ts AT TIME ZONE ''UTC'')::date')$$, 'usage_by_day');
SELECT results_eq(
  format('SELECT row(tenant_id, user_id)::text, calls, denied, calls_without_cost, tokens_cost FROM kavach_billing_report(2026, %s) ORDER BY 1', m),
  format('SELECT * FROM pg_temp.truth(%L, %L, %L)', 'row(tenant_id, user_id)', make_timestamptz(2026, m, 1, 0, 0, 0, 'UTC'), make_timestamptz(2026, m + 1, 1, 0, 0, 0, 'UTC')),
  format('billing_report of month %s', m))
  FROM generate_series(1, 4) AS m;
SELECT is(count(*), 1::bigint, 'unknown agents'' refused calls are one row of it, under NULL')
  FROM kavach_billing_report(2026, 2) WHERE tenant_id IS NULL AND user_id IS NULL AND denied = calls AND denied > 0 AND tokens_cost = 0;

-- They agree, with estimates settled and calls refused among them.
SELECT sum(tokens_cost) AS bill FROM kavach.audit_log \gset
SELECT is(total, :bill::numeric, what || ' adds up to the ledger') FROM (
  SELECT 'query_audit', sum(tokens_cost) FROM kavach_query_audit() UNION ALL
  SELECT 'export', sum(tokens_cost) FROM kavach_export() UNION ALL
  SELECT 'export_json', sum((j ->> 'tokens_cost')::numeric) FROM kavach_export_json() AS j UNION ALL
  SELECT 'cost_by_agent', sum(tokens_cost) FROM kavach_cost_by_agent(NULL, NULL) UNION ALL
  SELECT 'cost_by_user', sum(tokens_cost) FROM kavach_cost_by_user(NULL, NULL) UNION ALL
  SELECT 'cost_by_day', sum(tokens_cost) FROM kavach_cost_by_day(NULL, NULL, NULL) UNION ALL
  SELECT 'the months'' billing_report', sum(tokens_cost) FROM generate_series(1, 12) AS m, kavach_billing_report(2026, m)) AS t (what, total);

-- The same under other settings: the rows are what they were, day for day.
CREATE TEMP TABLE utc AS SELECT * FROM kavach_cost_by_day(NULL, '2026-01-20Z', '2026-03-20Z');
CREATE TEMP TABLE utc_days AS SELECT * FROM kavach.usage_by_day;
CREATE TEMP TABLE utc_bill AS SELECT * FROM kavach_billing_report(2026, 2);
SET LOCAL timezone = 'Pacific/Auckland';
SET LOCAL datestyle = 'German, DMY';
SELECT bag_eq($$SELECT * FROM kavach_cost_by_day(NULL, '2026-01-20Z', '2026-03-20Z')$$, 'SELECT * FROM utc', 'days are UTC days in any TimeZone');
SELECT bag_eq($$SELECT * FROM kavach_billing_report(2026, 2)$$, 'SELECT * FROM utc_bill', 'and months UTC months');
SELECT bag_eq('SELECT * FROM kavach.usage_by_day', 'SELECT * FROM utc_days', 'in the view too');
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO';

-- query_audit
SELECT results_eq('SELECT * FROM kavach_query_audit()', 'SELECT * FROM kavach.audit_log ORDER BY id DESC', 'query_audit: the ledger''s columns, newest first');
SELECT results_eq(format('SELECT id FROM kavach_query_audit(%s)', args), format('SELECT id FROM kavach.audit_log WHERE %s ORDER BY id DESC', cond), 'query_audit(' || args || ')')
  FROM (VALUES
    ($$agent_id => 'agt_3'$$,                    $$agent_id = 'agt_3'$$),
    ($$user_id => 'user_2'$$,                    $$user_id = 'user_2'$$),
    ($$tenant_id => 'tenant_1'$$,                $$tenant_id = 'tenant_1'$$),
    ($$actions => '{stop}'$$,                    $$action = 'stop'$$),
    ($$actions => '{stop,run}'$$,                $$action IN ('stop', 'run')$$),
    ($$result => 'rate_limited'$$,               $$result = 'rate_limited'$$),
    ($$since => '2026-02-01Z'$$,                 $$ts >= '2026-02-01Z'$$),
    ($$until => '2026-02-01Z'$$,                 $$ts < '2026-02-01Z'$$),
    ($$'agt_2', 'user_2', NULL, '2026-01-20Z', '2026-02-20Z', '{run}', 'allowed'$$,
     $$agent_id = 'agt_2' AND user_id = 'user_2' AND ts >= '2026-01-20Z' AND ts < '2026-02-20Z' AND action = 'run' AND result = 'allowed'$$)
  ) AS t (args, cond);
SELECT results_eq(format('SELECT id FROM kavach_query_audit(since => %L, until => %L)', :'since', :'until'),
                  format('SELECT id FROM kavach.audit_log WHERE ts >= %L AND ts < %L ORDER BY id DESC', :'since', :'until'), 'query_audit: until is exclusive');
SELECT results_eq($$SELECT id FROM kavach_query_audit(result => 'denied', max_rows => 7)$$,
                  $$SELECT id FROM kavach.audit_log WHERE result = 'denied' ORDER BY id DESC LIMIT 7$$, 'filters before limits');
CREATE FUNCTION pg_temp.pages(page int, of text DEFAULT '') RETURNS SETOF uuid LANGUAGE plpgsql AS $$
DECLARE last uuid; ids uuid[];
BEGIN
  FOR i IN 1 .. 100 LOOP
    EXECUTE format('SELECT ARRAY(SELECT id FROM kavach_query_audit(%s max_rows => $1, before => $2))', of) INTO ids USING page, last;
    EXIT WHEN ids = '{}';
    RETURN QUERY SELECT unnest(ids);
    last := ids[cardinality(ids)];
  END LOOP;
END $$;
SELECT results_eq('SELECT * FROM pg_temp.pages(64)', 'SELECT id FROM kavach.audit_log ORDER BY id DESC', 'pages by `before` miss nothing and repeat nothing');

-- The rows of somebody: some closed, some not, none at all.
CREATE FUNCTION pg_temp.wrong_pages() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE p record; got uuid[]; true_ids uuid[];
BEGIN
  FOR p IN
    SELECT * FROM (VALUES
      (7, 'agent_id => ''agt_3'',', 'agent_id = ''agt_3'''), (7, 'agent_id => ''agt_8'',', 'agent_id = ''agt_8'''),
      (1000, 'user_id => ''user_2'',', 'user_id = ''user_2'''), (7, 'user_id => ''user_2'',', 'user_id = ''user_2'''),
      (50, 'tenant_id => ''tenant_1'',', 'tenant_id = ''tenant_1'''),
      (7, 'user_id => ''user_1'', tenant_id => ''tenant_1'', actions => ''{run}'',', 'user_id = ''user_1'' AND tenant_id = ''tenant_1'' AND action = ''run'''),
      (7, 'agent_id => ''agt_1'', user_id => ''user_2'', result => ''denied'',', 'agent_id = ''agt_1'' AND user_id = ''user_2'' AND result = ''denied'''),
      (3, 'user_id => ''user_2'', since => ''2026-02-01 01:00Z'', until => ''2026-02-08 05:00Z'',', 'user_id = ''user_2'' AND ts >= ''2026-02-01 01:00Z'' AND ts < ''2026-02-08 05:00Z'''),
      (7, 'user_id => ''nobody'',', 'false'), (7, 'tenant_id => ''nobody'',', 'false')) AS v (page, of, cond)
  LOOP
    got := ARRAY(SELECT pg_temp.pages(p.page, p.of));
    EXECUTE format('SELECT ARRAY(SELECT id FROM kavach.audit_log WHERE %s ORDER BY id DESC)', p.cond) INTO true_ids;
    IF got <> true_ids THEN
      RETURN NEXT format('%s %s rows, not %s', p.of, cardinality(got), cardinality(true_ids));
    END IF;
  END LOOP;
END $$;
SELECT is_empty('SELECT * FROM pg_temp.wrong_pages()', 'pages of an agent, a user, a tenant, before anything is closed');
SELECT kavach.close_batches();
SELECT is_empty('SELECT * FROM pg_temp.wrong_pages()', 'and when all is');
DO $$
BEGIN
  FOR i IN 1 .. 300 LOOP
    PERFORM set_config('kavach.clock', (timestamptz '2026-03-25Z' + i * interval '1 minute')::text, true), kavach_authorize('agt_5', 'run', 'x', tokens_cost => 1);
  END LOOP;
END $$;
SELECT is_empty('SELECT * FROM pg_temp.wrong_pages()', 'and when some is not again');
UPDATE kavach.usage_daily SET calls = calls * 1000;
SELECT is_empty('SELECT * FROM pg_temp.wrong_pages()', 'and of somebody who has most of what there is');

-- unsettled
SELECT bag_eq($$SELECT coalesce(j ->> 'id', j ->> 'audit_id') FROM (SELECT to_jsonb(u) FROM kavach.unsettled u) AS t (j)$$,
              $$SELECT id::text FROM kavach.audit_log a WHERE kind = 'authorize' AND result = 'allowed' AND tokens_requested IS NOT NULL
                   AND NOT EXISTS (SELECT FROM kavach.audit_log s WHERE s.settles = a.id)$$, 'unsettled: admitted with a cost, and no row settles it');

-- Bounds that are no constants are asked for with every row: no body of SQL's or PL/pgSQL's there.
SELECT is(string_agg(DISTINCT l.lanname || ' ' || p.provolatile::text, ', '), 'c i', 'what gives reports their bounds is C, and immutable')
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.pronamespace = 'kavach'::regnamespace AND p.proname IN ('range_start', 'range_edge', 'audit_limit', 'month_start', 'month_end', 'uuid7_ts', 'uuid7_since', 'uuid7_until', 'report_whole', 'groups_by', 'check_report', 'label_keys');

SELECT * FROM finish();
ROLLBACK;
