-- budgets.sql: what a limit admits and refuses, at every scope, window and measure.
BEGIN;
SELECT plan(56);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_b', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_c', 'cyd', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_d', 'ann', 'brix', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_e', 'eve', NULL,   permissions => '[{"resource": "*", "actions": ["*"]}]');

-- Four scopes, four windows, two measures: three more fit, the fourth does not. The limit is what the scope has used
-- already, by the ledger, and three.
CREATE FUNCTION pg_temp.story(scope text, measure text, period text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  key text := CASE measure WHEN 'tokens' THEN 'max_tokens_cost_' ELSE 'max_calls_' END
              || CASE period WHEN 'total' THEN 'total' ELSE 'per_' || period END;
  since timestamptz := CASE period WHEN 'total' THEN '-infinity' ELSE date_trunc(period, timestamptz '2026-03-10 12:34:56Z') END;
  used bigint := (SELECT CASE measure WHEN 'tokens' THEN coalesce(sum(tokens_cost), 0)
                                      ELSE count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed') END
                    FROM kavach.audit_log
                   WHERE ts >= since AND CASE scope WHEN 'agent' THEN agent_id = 'agt_a' WHEN 'user' THEN user_id = 'ann'
                                                    WHEN 'tenant' THEN tenant_id = 'acme' ELSE true END);
  policy text := kavach_create_policy(agent_id => CASE scope WHEN 'agent' THEN 'agt_a' END,
                                      user_id => CASE scope WHEN 'user' THEN 'ann' END,
                                      tenant_id => CASE scope WHEN 'tenant' THEN 'acme' END,
                                      all_agents => scope = 'all',
                                      limits => jsonb_build_object(key, used + 3));
  a record;
  told text := '';
BEGIN
  FOR i IN 1 .. 4 LOOP
    SELECT * INTO a FROM kavach_authorize('agt_a', 'run', 'tool', tokens_cost => 1);
    told := told || concat_ws(' ', a.code, CASE measure WHEN 'tokens' THEN a.tokens_remaining ELSE a.calls_remaining END,
                              CASE measure WHEN 'tokens' THEN a.calls_remaining ELSE a.tokens_remaining END,
                              CASE WHEN a.policy_id = policy THEN 'by it' END,
                              coalesce(to_char(a.retry_at, 'MM-DD HH24:MI'), '-'), '/ ');
  END LOOP;
  PERFORM kavach_drop_policy(policy);
  RETURN told;
END $$;
SELECT is(pg_temp.story(scope, measure, period),
          'allowed 2 - / allowed 1 - / allowed 0 - / budget_exceeded 0 by it ' || over || ' / ',
          format('%s of %s per %s', measure, scope, period))
  FROM (VALUES ('agent'), ('user'), ('tenant'), ('all')) AS s (scope),
       (VALUES ('tokens'), ('calls')) AS m (measure),
       (VALUES ('hour', '03-10 13:00'), ('day', '03-11 00:00'), ('month', '04-01 00:00'), ('total', '-')) AS p (period, over);

-- Whose usage a scope counts: ann's agents in every tenant, acme's of every user.
SELECT kavach_create_policy(user_id => 'ann', limits => jsonb_build_object('max_tokens_cost_total',
         (SELECT sum(tokens_cost) FROM kavach.audit_log WHERE user_id = 'ann') + 10)) AS p \gset
SELECT is(row(code, tokens_remaining)::text, '(allowed,7)', 'the user''s second agent')
  FROM kavach_authorize('agt_b', 'run', 'tool', tokens_cost => 3);
SELECT is(row(code, tokens_remaining)::text, '(allowed,3)', 'and one in another tenant draw on the same limit')
  FROM kavach_authorize('agt_d', 'run', 'tool', tokens_cost => 4);
SELECT is(row(code, tokens_remaining)::text, '(allowed,)', 'another user''s agent of the tenant does not')
  FROM kavach_authorize('agt_c', 'run', 'tool', tokens_cost => 1000);
SELECT is(row(code, tokens_remaining)::text, '(budget_exceeded,3)', 'what is left is too little')
  FROM kavach_authorize('agt_a', 'run', 'tool', tokens_cost => 4);
SELECT is(row(code, tokens_remaining)::text, '(allowed,0)', 'an exact fit is admitted')
  FROM kavach_authorize('agt_a', 'run', 'tool', tokens_cost => 3);
SELECT is(code, 'budget_exceeded', 'then a call of 1 is refused') FROM kavach_authorize('agt_a', 'run', 'tool', tokens_cost => 1);
SELECT is(code, 'budget_exceeded', 'one of 0 too') FROM kavach_authorize('agt_a', 'run', 'tool', tokens_cost => 0);
SELECT is(code, 'budget_exceeded', 'and one without a cost') FROM kavach_authorize('agt_a', 'run', 'tool');
SELECT kavach_drop_policy(:'p');
SELECT is(row(code, tokens_remaining)::text, '(allowed,)', 'a dropped policy limits nobody')
  FROM kavach_authorize('agt_a', 'run', 'tool', tokens_cost => 1);

-- No cost: admitted while anything is left, and leaves tokens alone.
SELECT kavach_create_policy(agent_id => 'agt_e', limits => '{"max_tokens_cost_per_day": 5, "max_calls_per_day": 6}') AS p \gset
SELECT is(row(code, tokens_granted, tokens_remaining, calls_remaining)::text, '(allowed,,5,5)', 'no cost')
  FROM kavach_authorize('agt_e', 'run', 'tool');
SELECT is(row(code, tokens_granted, tokens_remaining, calls_remaining)::text, '(allowed,0,5,4)', 'a cost of 0')
  FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 0);
SELECT is(row(code, tokens_remaining, calls_remaining)::text, '(budget_exceeded,5,4)', 'a refusal charges neither measure')
  FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 6);
SELECT is(row(code, tokens_granted, tokens_remaining, calls_remaining)::text, '(allowed,4,1,3)', 'a cost of 4')
  FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 4);
SELECT is(row(code, tokens_remaining, calls_remaining)::text, '(allowed,1,2)', 'one is left: a call without cost is admitted')
  FROM kavach_authorize('agt_e', 'run', 'tool');
SELECT is(row(code, tokens_remaining, calls_remaining)::text, '(allowed,0,1)', 'the last token')
  FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 1);
SELECT is(row(code, tokens_remaining, calls_remaining)::text, '(budget_exceeded,0,1)', 'none is left: it is refused')
  FROM kavach_authorize('agt_e', 'run', 'tool');
SELECT kavach_drop_policy(:'p');

-- Refused calls do not count against call limits; usage and adjustments are no calls.
SELECT kavach_create_policy(user_id => 'eve', limits => jsonb_build_object('max_calls_total',
         (SELECT count(*) FROM kavach.audit_log WHERE user_id = 'eve' AND kind = 'authorize' AND result = 'allowed') + 2)) AS p \gset
SELECT is(calls_remaining, 1::bigint, 'two calls, one made') FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 1);
SELECT is(calls_remaining, 1::bigint, 'usage is no call') FROM kavach_record_usage('agt_e', 7);
SELECT isnt(kavach_adjust('agt_e', 5, 'goodwill'), NULL, 'nor is an adjustment');
SELECT is(calls_remaining, 0::bigint, 'the other') FROM kavach_authorize('agt_e', 'run', 'tool');
SELECT is(row(code, calls_remaining)::text, '(budget_exceeded,0)', 'the third is refused')
  FROM kavach_authorize('agt_e', 'run', 'tool');
SELECT kavach_drop_policy(:'p');

-- A policy counts what was used before it was made, disabled or not.
SET LOCAL kavach.clock = '2026-05-20 12:00:00+00';
SELECT code FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 60);
SELECT kavach_create_policy(agent_id => 'agt_e', limits => '{"max_tokens_cost_per_month": 100}') AS p \gset
SELECT is(row(code, tokens_remaining)::text, '(budget_exceeded,40)', 'a limit made mid-month sees the month')
  FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 41);
SELECT kavach_update_policy(:'p', enabled => false);
SELECT is(row(code, tokens_remaining)::text, '(allowed,)', 'a disabled one limits nobody')
  FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 30);
SELECT kavach_update_policy(:'p', enabled => true);
SELECT is(row(code, tokens_remaining)::text, '(allowed,0)', 'and knows what was used meanwhile')
  FROM kavach_authorize('agt_e', 'run', 'tool', tokens_cost => 10);

SELECT * FROM finish();
ROLLBACK;
