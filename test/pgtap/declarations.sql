-- declarations.sql: a function of C that SQL declares with other arguments or columns, as another version of kavach
-- would, fails with advice, before it reads or writes anything that is not there.
BEGIN;
SELECT plan(10);

-- A function of kavach's library, by its name there, with so many arguments and columns more (or less) than it has.
CREATE FUNCTION pg_temp.call_declared(symbol text, more_arguments int, more_columns int)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  f pg_proc;
  arguments text[];
  columns text[];
  called text;
  hint text;
BEGIN
  SELECT p.* INTO STRICT f FROM pg_proc p
   WHERE p.prosrc = symbol AND p.probin = '$libdir/kavach' AND p.pronamespace <> pg_my_temp_schema();
  arguments := ARRAY(SELECT format_type(t, NULL) FROM unnest(f.proargtypes) WITH ORDINALITY AS a (t, n) ORDER BY n)
               || CASE WHEN more_arguments > 0 THEN '{int}'::text[] ELSE '{}' END;
  arguments := arguments[1:f.pronargs + more_arguments];
  columns := ARRAY(SELECT 'OUT ' || format_type(t, NULL)
                     FROM unnest(f.proallargtypes, f.proargmodes) WITH ORDINALITY AS a (t, mode, n) WHERE mode IN ('o', 't') ORDER BY n);
  columns := (columns || CASE WHEN more_columns > 0 THEN '{OUT int, OUT int}'::text[] ELSE '{}' END)
             [1:cardinality(columns) + more_columns + CASE WHEN columns = '{}' AND more_columns > 0 THEN 1 ELSE 0 END];
  EXECUTE format('CREATE FUNCTION pg_temp.declared(%s) %s LANGUAGE c AS %L, %L',
                 array_to_string(arguments || columns, ', '),
                 CASE WHEN columns = '{}' THEN 'RETURNS ' || f.prorettype::regtype
                      WHEN f.proretset THEN 'RETURNS SETOF record' END,
                 f.probin, symbol);
  called := format('pg_temp.declared(%s)', array_to_string(array_fill('NULL'::text, ARRAY[cardinality(arguments)]), ', '));
  EXECUTE CASE WHEN columns = '{}' THEN 'SELECT ' || called ELSE 'SELECT * FROM ' || called END;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
  RETURN concat_ws(' ', SQLSTATE, hint);
END
$$;

CREATE TEMP TABLE symbol AS
SELECT DISTINCT p.prosrc AS name, p.pronargs AS arguments,
       cardinality(ARRAY(SELECT 1 FROM unnest(p.proargmodes) m WHERE m IN ('o', 't'))) AS columns, p.prorettype
  FROM pg_proc p WHERE p.probin = '$libdir/kavach' AND p.proname <> 'no_rows';  -- (its row is what the caller says)

SELECT cmp_ok(count(*), '>=', 18::bigint, 'there are functions of C') FROM symbol;
SELECT is_empty($$
  SELECT name, pg_temp.call_declared(name, 1, 0) FROM symbol
   WHERE pg_temp.call_declared(name, 1, 0) <> '42P13 Restart the server, once the library that belongs to the SQL is installed.'
$$, 'with an argument more, the library is the older one');
SELECT is_empty($$
  SELECT name, pg_temp.call_declared(name, -1, 0) FROM symbol
   WHERE arguments > 0 AND pg_temp.call_declared(name, -1, 0) <> '42P13 In this database, run ALTER EXTENSION kavach UPDATE.'
$$, 'with one less, the SQL is');
SELECT is_empty($$
  SELECT name, pg_temp.call_declared(name, 0, 1) FROM symbol
   WHERE prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
     AND pg_temp.call_declared(name, 0, 1) <> '42P13 Restart the server, once the library that belongs to the SQL is installed.'
$$, 'with a column more, the library is the older one');
SELECT is_empty($$
  SELECT name, pg_temp.call_declared(name, 0, -1) FROM symbol
   WHERE columns > 0 AND pg_temp.call_declared(name, 0, -1) <> '42P13 In this database, run ALTER EXTENSION kavach UPDATE.'
$$, 'with one less, the SQL is');

-- and what the others get to see
CREATE FUNCTION pg_temp.short(text) RETURNS boolean LANGUAGE c AS '$libdir/kavach', 'kavach_check_id';
SELECT throws_ok($$SELECT pg_temp.short('x')$$, '42P13', $$kavach's SQL and its library are of different versions$$, 'the message');
CREATE FUNCTION pg_temp.no_row(text, text, text, boolean) RETURNS bigint LANGUAGE c AS '$libdir/kavach', 'kavach_current_usage';
SELECT throws_ok($$SELECT pg_temp.no_row('all', NULL, 'day', true)$$, '42P13', NULL, 'a value where there is a row');

-- A trigger has its arguments elsewhere.
CREATE TEMP TABLE noted (agent_id text);
CREATE TRIGGER noted BEFORE INSERT ON noted FOR EACH ROW EXECUTE FUNCTION kavach.note_change();
SELECT throws_ok($$INSERT INTO noted VALUES ('agt_a')$$, '39P01', NULL, 'a trigger with an argument less');
DROP TRIGGER noted ON noted;
CREATE TRIGGER noted BEFORE INSERT ON noted FOR EACH ROW EXECUTE FUNCTION kavach.note_change('agent', 'more');
SELECT throws_ok($$INSERT INTO noted VALUES ('agt_a')$$, '39P01', NULL, 'or one more');
DROP TRIGGER noted ON noted;
CREATE TRIGGER noted BEFORE INSERT ON noted FOR EACH ROW EXECUTE FUNCTION kavach.note_change('agent');
SELECT lives_ok($$INSERT INTO noted VALUES ('agt_a')$$, 'or just that');

SELECT * FROM finish();
ROLLBACK;
