-- report_sums.sql: reports are the sums over the ledger's rows whatever of these is summed up beforehand, for any range,
-- and read no more of the ledger than they need.
BEGIN;
SELECT plan(28);
SET LOCAL timezone = 'Asia/Kolkata';
\ir differences.psql
SELECT setseed(0.5);
SELECT kavach_create_months('2031-01-01', '2031-04-01');

-- Rows of three months, more of them around the cuts below. By hand, as kavach_record_usage knows no models.
CREATE FUNCTION pg_temp.new_id(ts timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS $$
  SELECT overlay(kavach.uuid7_since(ts)::text PLACING '7' || substr(gen_random_uuid()::text, 16) FROM 15)::uuid
$$;
CREATE FUNCTION pg_temp.put_rows(n int, batch bigint DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
  WITH call AS MATERIALIZED (
    SELECT pg_temp.new_id(ts) AS id, ts, agent, CASE WHEN agent < 8 THEN 'user_' || agent % 3 END AS user_id,
           CASE WHEN agent < 8 AND agent % 4 > 0 THEN 'tenant_' || agent % 2 END AS tenant_id, 1 + floor(random() * 300)::bigint AS cost, random() AS r, random() AS s
      FROM generate_series(1, n) i,
           LATERAL (SELECT CASE WHEN i % 3 > 0 THEN timestamptz '2031-01-20Z' + random() * interval '75 days'
                                ELSE timestamptz '2031-02-10 11:59:59.999Z' + random() * interval '2 ms' END AS ts, 1 + floor(random() * 10)::int AS agent) c
  ), put AS (
    INSERT INTO kavach.audit_log (id, ts, batch, kind, agent_id, user_id, tenant_id, action, resource, result, code, tokens_requested, tokens_released, tokens_cost,
                                  settles, provider, model, tokens_input, metadata)
    SELECT id, ts, coalesce($2, kavach.current_batch()), 'authorize', 'agt_' || agent, user_id, tenant_id, CASE WHEN r < 0.3 THEN 'stop' ELSE 'run' END, 'mcp:tool:' || agent % 3,
           CASE WHEN user_id IS NULL OR r < 0.1 THEN 'denied' WHEN r < 0.15 THEN 'rate_limited' ELSE 'allowed' END, 'code',
           CASE WHEN s > 0.1 THEN cost END, NULL, CASE WHEN user_id IS NULL OR r < 0.15 THEN 0 WHEN s > 0.1 THEN cost END, NULL::uuid, NULL, NULL, NULL::bigint,
           CASE WHEN r < 0.5 THEN jsonb_build_object('team', agent % 2, 'run', 'r') END
      FROM call
     UNION ALL
    SELECT pg_temp.new_id(at), at, coalesce($2, kavach.current_batch()), 'usage', 'agt_' || agent, user_id, tenant_id, 'run', 'mcp:tool:' || agent % 3, 'allowed', 'recorded',
           (cost * s)::bigint, cost, (cost * s)::bigint - cost, id, CASE WHEN r < 0.8 THEN 'acme' END, CASE WHEN r < 0.7 THEN 'model_' || agent % 2 END, 70, NULL
      FROM call, LATERAL (SELECT ts + r * interval '2 days' AS at) t
     WHERE user_id IS NOT NULL AND r >= 0.15 AND s > 0.3
    RETURNING 1)
  SELECT count(*) FROM put
$$;

-- Ranges: none, months, days, cut in a day at either end, in the same day, at both ends of a millisecond, within one.
CREATE TEMP TABLE range (since timestamptz, until timestamptz);
INSERT INTO range VALUES
  ('2031-01-31 17:00Z', '2031-04-02 05:00:00.123456Z'), (NULL, NULL), ('2031-02-01Z', '2031-03-01Z'), ('2031-01-10Z', '2031-02-03Z'), ('2031-01-25Z', '2031-03-20Z'),
  ('2031-02-10 12:00Z', NULL), (NULL, '2031-02-10 12:00:00.0005Z'), ('2031-02-10 11:59:59.9995Z', '2031-02-10 12:00:00.0007Z'), ('2031-02-10 12:00Z', '2031-02-10 12:00Z'),
  ('2031-02-10 06:00Z', '2031-02-11Z'), ('2031-02-10Z', '2031-02-11 06:00Z'), ('2031-02-09 06:00Z', '2031-02-10 12:00Z'), ('infinity', NULL), (NULL, '-infinity'),
  ('1969-01-01 12:00Z', '1969-01-01 13:00Z');
CREATE FUNCTION pg_temp.all_differences(ranges int DEFAULT 100) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT format('%s from %s to %s', d, r.since, r.until) FROM (SELECT * FROM range LIMIT $1) r, differences(r.since, r.until) d UNION ALL SELECT differences_of_all(2031)
$$;

-- In as many states as there are of batches.
-- The worker may have closed others' before, which are gone.
DELETE FROM kavach.tail;
SELECT pg_temp.put_rows(700);
SELECT is_empty('SELECT * FROM kavach.batch', 'before anything is closed all is tail');
SELECT is_empty('SELECT * FROM pg_temp.all_differences(2)', 'and reports are right');
SELECT cmp_ok(kavach.close_batches(), '>', 700::bigint, 'all is closed');
SELECT is_empty('SELECT * FROM pg_temp.all_differences(2)', 'and summed up');
SELECT pg_temp.put_rows(400);
SELECT is_empty('SELECT * FROM pg_temp.all_differences(2)', 'some is closed, some is not');
SELECT kavach.close_batches();
SELECT is_empty('SELECT * FROM pg_temp.all_differences(2)', 'closed twice, sums are added to');
UPDATE kavach.tail SET high = high + 1000, open = ARRAY[high + 10, high + 500];
SELECT pg_temp.put_rows(100, high - 990) FROM kavach.tail;
SELECT is_empty('SELECT * FROM pg_temp.all_differences(2)', 'an old batch is open');
SELECT pg_temp.put_rows(100, high - 500) FROM kavach.tail;
SELECT pg_temp.put_rows(100, high + 7) FROM kavach.tail;
SELECT is_empty('SELECT * FROM pg_temp.all_differences()', 'two are, and later ones');
SELECT cmp_ok(count(*), '>', 50::bigint, 'in all of this calls are left unsettled') FROM kavach.unsettled;
SELECT cmp_ok(count(*), '=', 2::bigint, 'and usage is of models') FROM kavach_usage_report(group_by => '{model}') WHERE model IS NOT NULL;

-- An id by hand that is of no time: its row is found by its ts.
INSERT INTO kavach.audit_log (id, ts, batch, kind, agent_id, user_id, action, result, code, tokens_cost)
SELECT id::uuid, '2031-01-31 18:00Z', high + 7, 'usage', 'agt_3', 'user_0', 'run', 'allowed', 'recorded', 5
  FROM kavach.tail, unnest(ARRAY['00000000-0000-4000-8000-000000000001', 'ffffffff-ffff-4fff-8fff-ffffffffffff', 'd9428888-122b-11e1-b85c-61cd3cbb3210']) AS id;
SELECT is_empty('SELECT * FROM pg_temp.all_differences(2)', 'a row with an id of no time is found');

-- One token is seen.
SAVEPOINT honest;
UPDATE kavach.usage_daily SET tokens_cost = tokens_cost + 1 WHERE ctid = (SELECT min(ctid) FROM kavach.usage_daily WHERE agent_id = 'agt_3');
SELECT isnt_empty('SELECT * FROM pg_temp.all_differences(2)', 'a day with a token too many is seen');
ROLLBACK TO honest;
UPDATE kavach.usage_monthly SET tokens_cost = tokens_cost - 1 WHERE ctid = (SELECT min(ctid) FROM kavach.usage_monthly WHERE agent_id = 'agt_3');
SELECT isnt_empty('SELECT * FROM pg_temp.all_differences(2)', 'and a month with one too few');
ROLLBACK TO honest;
UPDATE kavach.usage_total SET tokens_cost = tokens_cost + 1 WHERE day = '2031-02-10';
SELECT isnt_empty('SELECT * FROM pg_temp.all_differences(2)', 'and a day''s total with one too many');
ROLLBACK TO honest;

-- Plans: nothing is called, no month is passed over, and none looked at that the range has no piece of a day in.
CREATE FUNCTION pg_temp.plan_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE line text; plan text := '';
BEGIN
  FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || statement LOOP plan := plan || line || E'\n'; END LOOP;
  RETURN plan;
END $$;
CREATE FUNCTION pg_temp.bad_plans() RETURNS SETOF text LANGUAGE sql AS $$
  SELECT s || E'\n' || pg_temp.plan_of(s)
    FROM unnest(ARRAY[
      'SELECT * FROM kavach_cost_by_agent(''2031-01-31 17:00Z'', ''2031-04-02 05:00Z'')', 'SELECT * FROM kavach_cost_by_user(NULL, ''2031-04-02 05:00Z'') WHERE user_id = ''user_1''',
      'SELECT * FROM kavach_cost_by_day(NULL, ''2031-02-01Z'', ''2031-04-01Z'') LIMIT 3', 'SELECT * FROM kavach_billing_report(2031, 2)',
      'SELECT * FROM kavach.usage_by_agent WHERE agent_id = ''agt_1''', 'SELECT * FROM kavach.usage_by_user', 'SELECT * FROM kavach.usage_by_day',
      'SELECT * FROM kavach_usage_report(''2031-01-31 17:00Z'', ''2031-04-02 05:00Z'', ''{model,user}'', ''day'')', 'SELECT * FROM kavach.unsettled',
      'EXECUTE by_agent(''2031-01-31 17:00Z'', ''2031-04-02 05:00Z'')', 'EXECUTE by_model(''{model}'')']) AS s
   WHERE pg_temp.plan_of(s) ~ '(Seq Scan on audit_log_2031_0[1-4]|Function Scan on kavach)'
$$;
PREPARE by_agent(timestamptz, timestamptz) AS SELECT * FROM kavach_cost_by_agent($1, $2);
PREPARE by_model(text[]) AS SELECT * FROM kavach_usage_report('2031-01-31 17:00Z', '2031-04-02 05:00Z', $1);
-- So many that no month is read as fast as a few of its rows.
INSERT INTO kavach.audit_log (id, ts, batch, kind, agent_id, user_id, action, result, code, tokens_cost)
SELECT pg_temp.new_id(ts), ts, 1, 'usage', 'agt_' || i % 10, 'user_1', 'run', 'allowed', 'recorded', 1
  FROM unnest('{2031-01-01Z,2031-02-01Z,2031-03-01Z,2031-04-03Z}'::timestamptz[]) AS month, generate_series(1, 6000) AS i, LATERAL (SELECT month + i * interval '6 min') AS t (ts);
SELECT is_empty('SELECT * FROM pg_temp.bad_plans()', 'without statistics, reports read the ledger by its indexes');
SET LOCAL plan_cache_mode = force_generic_plan;
SELECT is_empty('SELECT * FROM pg_temp.bad_plans()', 'with arguments that are not known, too');
ANALYZE kavach.audit_log, kavach.usage_daily, kavach.usage_monthly, kavach.usage_total, kavach.tail;
SELECT is_empty('SELECT * FROM pg_temp.bad_plans()', 'and with statistics');
SELECT is(ARRAY(SELECT DISTINCT m[1] FROM regexp_matches(pg_temp.plan_of($$SELECT * FROM kavach.usage_between('2031-02-10 17:00Z', '2031-02-26 05:00Z', 'monthly') WHERE part = 'row'$$), 'on (audit_log_\d+_\d+)', 'g') AS m),
          '{audit_log_2031_02}', 'pieces of days: of the months that they are in');

SET LOCAL plan_cache_mode = auto;
SELECT is_empty($$SELECT s FROM unnest(ARRAY['SELECT * FROM kavach_cost_by_day(NULL, ''2031-02-01Z'', ''2031-04-01 12:00Z'')', 'SELECT * FROM kavach.usage_by_day',
                    'SELECT * FROM kavach_usage_report()', 'SELECT * FROM kavach_usage_report(NULL, ''2031-04-01Z'', ''{}'', ''month'')']) AS s WHERE pg_temp.plan_of(s) ~ ' usage_(daily|monthly)'$$,
                'days of all together are read from their totals');
SELECT is_empty($$SELECT s FROM unnest(ARRAY['SELECT * FROM kavach_cost_by_day(''agt_1'', ''2031-02-01Z'', ''2031-04-01Z'')', 'SELECT * FROM kavach_usage_report(group_by => ''{user}'')']) AS s WHERE pg_temp.plan_of(s) ~ ' usage_total'$$,
                'and of none of them alone');

-- The general report.
SELECT results_eq($$SELECT bucket_start, user_id, calls FROM kavach_usage_report('2030-12-01Z', '2031-06-01Z', '{user}', 'month', fill_gaps => true) ORDER BY 1, 2$$,
                  $$SELECT m AT TIME ZONE 'UTC', u, coalesce((SELECT sum(1) FROM counted c WHERE c.is_call AND c.user_id IS NOT DISTINCT FROM u AND date_trunc('month', c.ts AT TIME ZONE 'UTC') = m), 0)
                      FROM generate_series(timestamp '2030-12-01', '2031-05-01', '1 month') m, (SELECT DISTINCT user_id FROM counted) AS k (u) ORDER BY 1, 2$$, 'gaps are filled, for every group');
SELECT results_eq($$SELECT bucket_start, calls FROM kavach_usage_report('2040-01-01 01:30Z', '2040-01-01 04:00Z', bucket => 'hour', fill_gaps => true) ORDER BY 1$$,
                  $$VALUES (timestamptz '2040-01-01 01:00Z', 0::bigint), ('2040-01-01 02:00Z', 0), ('2040-01-01 03:00Z', 0)$$, 'for one, even where there is nothing');
SELECT is_empty($$SELECT * FROM kavach_usage_report('2040-01-01Z', '2040-02-01Z', '{user}', 'day', fill_gaps => true)$$, 'of groups that there are none of, none');
SELECT throws_ok(format('SELECT * FROM kavach_usage_report(%s)', args), code, message, message)
  FROM (VALUES ($$group_by => '{user,users}'$$, '22023', 'cannot group by "users"'), ($$group_by => '{metadata.}'$$, '22023', 'cannot group by "metadata."'),
               ($$group_by => '{NULL}'$$, '22004', 'group_by must not contain NULL'), ($$bucket => 'week'$$, '22023', 'unrecognized bucket "week"'),
               ($$fill_gaps => true, bucket => 'day', since => '2031-01-01Z'$$, '22023', 'there are no gaps to fill')) AS e (args, code, message);

SELECT * FROM finish();
ROLLBACK;
