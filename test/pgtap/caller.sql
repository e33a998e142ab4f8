-- caller.sql: what is the caller's own runs with the caller's rights, in a call's arguments, beside it and after it,
-- whether the call succeeds or fails; and who calls inside another's SECURITY DEFINER function has the definer's.
BEGIN;
SELECT plan(27);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

CREATE ROLE kv_app;
CREATE ROLE kv_bare;
CREATE ROLE kv_definer;
CREATE ROLE kv_admin;
SELECT kavach_grant_role('kv_app', 'app'), kavach_grant_role('kv_definer', 'app'), kavach_grant_role('kv_admin', 'admin');
SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["run"]}]');
SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_total": 1000}');
-- an agent whose calls end in an error while kavach acts as its owner: nothing admits a policy like this one
SELECT kavach_create_agent('agt_broken', 'bob', permissions => '[{"resource": "*", "actions": ["run"]}]');
SET LOCAL kavach.allow_alter = on;
ALTER TABLE kavach.budget_policy DROP CONSTRAINT budget_policy_action_check;
INSERT INTO kavach.budget_policy (policy_id, scope, subject, action) VALUES ('pol_broken', 'agent', 'agt_broken', 'explode');
INSERT INTO kavach.budget_limit VALUES ('pol_broken', 'tokens', 'total', 1);

CREATE SCHEMA own;
GRANT ALL ON SCHEMA own TO PUBLIC;
CREATE TABLE own.told (n int, told text);
GRANT ALL ON own.told TO PUBLIC;
-- all that a call could leave behind
CREATE FUNCTION own.who() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN concat_ws('/', current_user, session_user, current_setting('role'), current_setting('search_path'), current_setting('row_security'),
                   current_setting('enable_seqscan'), current_setting('default_tablespace'), current_setting('default_table_access_method'));
END $$;
-- what the owner alone may do: '42501' for each thing tried
CREATE FUNCTION own.evil() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  statement text;
  states text[] := '{}';
BEGIN
  FOREACH statement IN ARRAY ARRAY['DELETE FROM kavach.budget_limit', 'ALTER TABLE kavach.agent DISABLE TRIGGER ALL',
                                   format('SET ROLE %I', (SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'kavach'))] LOOP
    BEGIN
      EXECUTE statement;
      states := states || 'done'::text;
    EXCEPTION WHEN OTHERS THEN states := states || SQLSTATE::text;
    END;
  END LOOP;
  RETURN CASE WHEN states = '{42501,42501,42501}' THEN 'kept out' ELSE states::text END;
END $$;
-- a function of somebody else's: with the definer's rights, and one whose definer has none
CREATE FUNCTION own.pay(OUT before text, OUT code text, OUT after text, OUT evil text) LANGUAGE plpgsql SECURITY DEFINER SET search_path = own, public AS $$
BEGIN
  before := who();
  SELECT a.code INTO code FROM kavach_authorize('agt_a', 'run', 'x', 1) a;
  after := who();
  evil := evil();
END $$;
CREATE FUNCTION own.pay_without(OUT code text) LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  SELECT a.code INTO code FROM kavach_authorize('agt_a', 'run', 'x', 1) a;
EXCEPTION WHEN OTHERS THEN code := SQLSTATE;
END $$;
ALTER FUNCTION own.pay() OWNER TO kv_definer;
ALTER FUNCTION own.pay_without() OWNER TO kv_bare;

SET LOCAL SESSION AUTHORIZATION kv_app;
SET LOCAL search_path = own, public;

-- beside the call, in one statement
INSERT INTO told SELECT 1, who();
INSERT INTO told SELECT 2, who() FROM kavach_authorize('agt_a', 'run', 'x', 1);
INSERT INTO told SELECT 3, evil() FROM kavach_record_usage('agt_a', 1);
INSERT INTO told SELECT 4, who();

-- in the defaults of a table, before and after a default that calls
CREATE TABLE call (
  n int,
  first text DEFAULT evil(),
  audit_id uuid DEFAULT (kavach_authorize('agt_a', 'run', 'x', 1)).audit_id,
  second text DEFAULT evil(),
  who text DEFAULT who());
GRANT INSERT ON call TO PUBLIC;
INSERT INTO call VALUES (1);
INSERT INTO told SELECT 5, concat_ws(', ', first, second) FROM call WHERE audit_id IS NOT NULL;
INSERT INTO told SELECT 6, who FROM call;

-- in arguments of types of its own: a domain, and a cast
CREATE FUNCTION spy(n int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO own.told VALUES (n, own.who()), (n + 1, own.evil()); RETURN true; END $$;
CREATE DOMAIN agent AS text CHECK (spy(10));
CREATE TYPE boxed AS (id text);
CREATE FUNCTION unbox(boxed) RETURNS text LANGUAGE sql AS 'SELECT ($1).id FROM own.spy(20)';
CREATE CAST (boxed AS text) WITH FUNCTION unbox(boxed) AS IMPLICIT;
INSERT INTO told SELECT 12, code FROM kavach_authorize('agt_a'::agent, 'run', 'x', 1);
INSERT INTO told SELECT 22, code FROM kavach_authorize(ROW('agt_a')::boxed, 'run', 'x', 1);

-- after an error that PL/pgSQL catches, one level deep and two
CREATE FUNCTION fail(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE state text;
BEGIN
  BEGIN
    BEGIN
      EXECUTE call;
    EXCEPTION WHEN OTHERS THEN state := concat_ws(' ', SQLSTATE, who() = (SELECT told FROM told WHERE n = 1), evil());
    END;
    RAISE 'again';
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
  RETURN concat_ws(', ', state, concat_ws(' ', who() = (SELECT told FROM told WHERE n = 1), evil()));
END $$;
INSERT INTO told VALUES
  (30, fail('SELECT kavach_authorize(NULL, NULL, NULL)')),
  (31, fail('SELECT kavach_authorize(''agt_broken'', ''run'', ''x'', 1)')),
  (32, fail('SELECT kavach_record_usage(''agt_a'', 1, ''00000000-0000-0000-0000-000000000000'')')),
  (33, fail('SELECT kavach_create_agent(user_id => ''eve'')'));

-- and back at a savepoint
SAVEPOINT s;
SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 1);
ROLLBACK TO s;
INSERT INTO told VALUES (34, who()), (35, evil());

-- whoever may execute nothing: neither directly nor by a default; by a definer's function, as the definer
SET LOCAL SESSION AUTHORIZATION kv_bare;
INSERT INTO told VALUES (40, fail('SELECT kavach_authorize(''agt_a'', ''run'', ''x'', 1)')), (41, fail('INSERT INTO own.call VALUES (2)'));
INSERT INTO told SELECT 42, concat_ws(' ', code, split_part(before, '/', 1), split_part(before, '/', 2), before = after, evil) FROM pay();
INSERT INTO told VALUES (43, who()), (44, evil());
SET LOCAL SESSION AUTHORIZATION kv_app;
INSERT INTO told SELECT 45, code FROM pay_without();

-- an admin's verbs give them back too
SET LOCAL SESSION AUTHORIZATION kv_admin;
INSERT INTO told VALUES (50, concat_ws(' ', kavach_create_agent('agt_b', 'bob'), evil()));
INSERT INTO told VALUES (51, concat_ws(' ', split_part(who(), '/', 1), fail('SELECT kavach_create_agent(''agt_b'', ''bob'')')));

RESET SESSION AUTHORIZATION;
SET LOCAL search_path = public;
SELECT is((SELECT told FROM own.told t WHERE t.n = e.n), replace(expected, 'as before', (SELECT told FROM own.told WHERE n = 1)), what)
  FROM (VALUES
    (1, 'kv_app/kv_app/none/own, public/on/on//heap', 'who calls'),
    (2, 'as before', 'a call gives back'), (3, 'kept out', 'and no right'), (4, 'as before', 'nor after it'),
    (5, 'kept out, kept out', 'defaults beside a call have the rights of whoever inserts'), (6, 'as before', 'and the settings'),
    (10, 'as before', 'a domain is checked'), (11, 'kept out', 'with the caller''s rights'), (12, 'allowed', 'before the call'),
    (20, 'as before', 'a value is cast'), (21, 'kept out', 'with the caller''s rights'), (22, 'allowed', 'before the call'),
    (30, '22004 t kept out, t kept out', 'bad input'), (31, 'XX000 t kept out, t kept out', 'an error while acting as the owner'),
    (32, 'KV002 t kept out, t kept out', 'an error after having acted so'), (33, '42501 t kept out, t kept out', 'a call that is not allowed'),
    (34, 'as before', 'back at a savepoint'), (35, 'kept out', 'with no right more'),
    (40, '42501 f kept out, f kept out', 'a bare role cannot call'), (41, '42501 f kept out, f kept out', 'nor have a default call'),
    (42, 'allowed kv_definer kv_bare t kept out', 'a definer''s function calls as the definer'),
    (43, 'kv_bare/kv_bare/none/own, public/on/on//heap', 'and leaves nothing'), (44, 'kept out', 'of that behind'),
    (45, '42501', 'a definer that may not call may not for a caller that may'),
    (50, 'agt_b kept out', 'an admin''s verb gives back'), (51, 'kv_admin 23505 f kept out, f kept out', 'in an error, too')) AS e (n, expected, what);
SELECT is(count(*), 6::bigint, 'every call that was allowed was charged') FROM kavach.audit_log WHERE result = 'allowed';

SELECT * FROM finish();
ROLLBACK;
