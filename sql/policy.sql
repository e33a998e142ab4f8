-- policy.sql
--   Budgets: policies, their limits, and what a reset forgives.
--   How they are applied is in src/decide/budget.c.

CREATE TABLE kavach.budget_policy (
  policy_id  text PRIMARY KEY,
  scope      text NOT NULL CHECK (kavach.scope_has_id(scope) IS NOT NULL),
  subject    text,
  each       boolean NOT NULL DEFAULT false,
  action     text NOT NULL DEFAULT 'block' CHECK (action IN ('warn', 'throttle', 'block', 'revoke')),
  enabled    boolean NOT NULL DEFAULT true,
  created_at timestamptz NOT NULL DEFAULT kavach.clock_now(),
  CONSTRAINT budget_policy_one_scope CHECK (
    CASE WHEN NOT kavach.scope_has_id(scope) THEN subject IS NULL AND NOT each
         ELSE each = (subject IS NULL) END)
);

CREATE INDEX budget_policy_scope_idx ON kavach.budget_policy (scope, subject);

SELECT pg_catalog.pg_extension_config_dump('kavach.budget_policy', '');
SELECT kavach.watch('kavach.budget_policy', 'policy');

COMMENT ON TABLE kavach.budget_policy IS 'Budgets: whom they bind and what happens at the limit. Written by kavach_create_policy and its siblings.';
COMMENT ON COLUMN kavach.budget_policy.policy_id IS 'pol_..., as callers and the ledger name it.';
COMMENT ON COLUMN kavach.budget_policy.scope IS 'agent, user, tenant, or all: one pool for everybody.';
COMMENT ON COLUMN kavach.budget_policy.subject IS 'The agent, user or tenant; NULL for all, and for an each policy.';
COMMENT ON COLUMN kavach.budget_policy.each IS 'Whether it is one limit for every subject of the scope separately.';
COMMENT ON COLUMN kavach.budget_policy.action IS 'warn, throttle, block or revoke: what happens when a limit would be passed.';
COMMENT ON COLUMN kavach.budget_policy.enabled IS 'Whether it is applied.';
COMMENT ON COLUMN kavach.budget_policy.created_at IS 'When it was created.';

CREATE TABLE kavach.budget_limit (
  policy_id text NOT NULL,
  measure   text NOT NULL CHECK (measure IN ('tokens', 'calls')),
  period    text NOT NULL CHECK (kavach.is_period(period)),
  amount    bigint NOT NULL CHECK (amount >= 0),
  PRIMARY KEY (policy_id, measure, period)
);

SELECT pg_catalog.pg_extension_config_dump('kavach.budget_limit', '');
SELECT kavach.watch('kavach.budget_limit', 'policy');

COMMENT ON TABLE kavach.budget_limit IS 'The limits of the policies, one a row.';
COMMENT ON COLUMN kavach.budget_limit.policy_id IS 'The policy.';
COMMENT ON COLUMN kavach.budget_limit.measure IS 'tokens, or calls (admitted ones).';
COMMENT ON COLUMN kavach.budget_limit.period IS 'hour, day, month (UTC) or total.';
COMMENT ON COLUMN kavach.budget_limit.amount IS 'The most that the window may hold.';

CREATE TABLE kavach.budget_baseline (
  policy_id    text NOT NULL,
  measure      text NOT NULL,
  period       text NOT NULL,
  subject      text,
  period_start timestamptz NOT NULL,
  usage        bigint NOT NULL,
  CONSTRAINT budget_baseline_key UNIQUE NULLS NOT DISTINCT (policy_id, measure, period, subject)
);
CREATE INDEX budget_baseline_subject_idx ON kavach.budget_baseline (subject);
-- No primary key, as subject may be NULL: a publication of all tables would refuse its updates.
ALTER TABLE kavach.budget_baseline REPLICA IDENTITY FULL;

SELECT pg_catalog.pg_extension_config_dump('kavach.budget_baseline', '');
SELECT kavach.watch('kavach.budget_baseline', 'policy');

COMMENT ON TABLE kavach.budget_baseline IS 'What a reset forgives: a limit counts what was used beyond this, in that window.';
COMMENT ON COLUMN kavach.budget_baseline.policy_id IS 'The policy.';
COMMENT ON COLUMN kavach.budget_baseline.measure IS 'The limit''s measure.';
COMMENT ON COLUMN kavach.budget_baseline.period IS 'The limit''s period.';
COMMENT ON COLUMN kavach.budget_baseline.subject IS 'The agent, user or tenant; NULL for all.';
COMMENT ON COLUMN kavach.budget_baseline.period_start IS 'The window that was reset; -infinity for total.';
COMMENT ON COLUMN kavach.budget_baseline.usage IS 'The subject''s usage of that window at the reset.';

CREATE FUNCTION kavach.limits(limits jsonb, OUT measure text, OUT period text, OUT amount bigint)
RETURNS SETOF record
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  given text;
  value jsonb;
BEGIN
  PERFORM kavach.check_object(limits, 'limits');
  FOR given, value IN SELECT * FROM jsonb_each(limits) LOOP
    SELECT k.measure, k.period INTO measure, period FROM kavach.limit_keys() k WHERE k.key = given;
    IF NOT FOUND THEN
      RAISE EXCEPTION 'unrecognized limit "%"', given
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = (SELECT format('Valid limits are %s.', regexp_replace(string_agg(k.key, ', '), '(.*), ', '\1 and ')) FROM kavach.limit_keys() k),
              HINT = 'To remove a limit, set it to null.';
    END IF;
    IF jsonb_typeof(value) = 'number' THEN
      IF (value #>> '{}')::numeric <> trunc((value #>> '{}')::numeric) OR (value #>> '{}')::numeric < 0 THEN
        RAISE EXCEPTION 'limit "%" must be a whole number of at least 0', given
          USING ERRCODE = 'invalid_parameter_value';
      END IF;
      amount := (value #>> '{}')::numeric::bigint;
    ELSIF jsonb_typeof(value) = 'null' THEN
      amount := NULL;
    ELSE
      RAISE EXCEPTION 'limit "%" must be a number or null', given
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN NEXT;
  END LOOP;
END
$$;

COMMENT ON FUNCTION kavach.limits(jsonb) IS
  'The limits of {"max_tokens_cost_per_month": 5000} as rows; amount is NULL for a JSON null. Errors: 22023 unknown key or no whole number, 22003 above bigint.';

CREATE FUNCTION kavach.check_action(action text)
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF action IS NULL THEN
    RAISE EXCEPTION 'action must not be NULL'
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  IF action NOT IN ('warn', 'throttle', 'block', 'revoke') THEN
    RAISE EXCEPTION 'unrecognized action "%"', action
      USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'Valid actions are warn, throttle, block and revoke.';
  END IF;
  RETURN true;
END
$$;

COMMENT ON FUNCTION kavach.check_action(text) IS
  'Raises an error unless action is one that a policy can have. Errors: 22004 NULL, 22023 unknown.';

CREATE FUNCTION kavach.check_policy(policy_id text)
RETURNS kavach.budget_policy
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  policy kavach.budget_policy;
BEGIN
  PERFORM kavach.check_id(policy_id, 'policy_id');
  SELECT * INTO policy FROM kavach.budget_policy p WHERE p.policy_id = check_policy.policy_id FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'policy "%" does not exist', policy_id
      USING ERRCODE = 'undefined_object',
            HINT = 'kavach.budget_policy lists the policies.';
  END IF;
  RETURN policy;
END
$$;

COMMENT ON FUNCTION kavach.check_policy(text) IS
  'The policy, locked against other changes. Errors: those of kavach.check_id, 42704 for an unknown policy.';

CREATE FUNCTION @extschema@.kavach_create_policy(
  agent_id   text DEFAULT NULL,
  user_id    text DEFAULT NULL,
  tenant_id  text DEFAULT NULL,
  each       text DEFAULT NULL,
  all_agents boolean DEFAULT false,
  limits     jsonb DEFAULT NULL,
  action     text DEFAULT 'block',
  policy_id  text DEFAULT NULL,
  replace    boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  new_id text := coalesce(policy_id, 'pol_' || pg_catalog.replace(gen_random_uuid()::text, '-', ''));
  new kavach.budget_policy;
  old kavach.budget_policy;
  created boolean;
  changed boolean := false;
BEGIN
  new.scope := kavach.policy_scope(agent_id, user_id, tenant_id, each, all_agents);
  IF agent_id IS NOT NULL THEN
    PERFORM kavach.check_agent(agent_id);
  END IF;
  PERFORM kavach.check_id(user_id, 'user_id', required => false),
          kavach.check_id(tenant_id, 'tenant_id', required => false),
          kavach.check_id(policy_id, 'policy_id', required => false),
          kavach.check_action(action);
  IF policy_id NOT LIKE 'pol\_%' THEN
    RAISE EXCEPTION 'policy_id must begin with "pol_"'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave it out to have one made.';
  END IF;
  IF replace AND policy_id IS NULL THEN
    RAISE EXCEPTION 'replace needs a policy_id'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give the id of the policy to replace: policy_id => ''pol_...''.';
  END IF;

  new.policy_id := new_id;
  new.subject := coalesce(agent_id, user_id, tenant_id);
  new.each := each IS NOT NULL;
  new.action := action;
  LOOP
    INSERT INTO kavach.budget_policy (policy_id, scope, subject, each, action)
    VALUES (new.policy_id, new.scope, new.subject, new.each, new.action)
    ON CONFLICT ON CONSTRAINT budget_policy_pkey DO NOTHING;
    created := FOUND;
    EXIT WHEN created;
    IF NOT coalesce(replace, false) THEN
      RAISE EXCEPTION 'policy "%" already exists', new_id
        USING ERRCODE = 'unique_violation',
              HINT = 'Change it with kavach_update_policy() or replace => true, or leave policy_id out to have one made.';
    END IF;
    SELECT * INTO old FROM kavach.budget_policy p WHERE p.policy_id = new_id FOR UPDATE;
    EXIT WHEN FOUND;
    -- dropped meanwhile: it is to be created after all
  END LOOP;

  IF created THEN
    -- one of that id whose row was deleted by hand may have left these
    DELETE FROM kavach.budget_limit l WHERE l.policy_id = new_id;
    DELETE FROM kavach.budget_baseline b WHERE b.policy_id = new_id;
  ELSE
    changed := kavach.replace_policy(old, new, limits);
  END IF;
  changed := kavach.merge_limits(new_id, limits) OR changed;
  IF replace THEN
    RAISE NOTICE 'policy "%" %', new_id, CASE WHEN created THEN 'created' WHEN changed THEN 'replaced' ELSE 'unchanged' END;
  END IF;
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_create_policy(text, text, text, text, boolean, jsonb, text, text, boolean) IS
'Creates a budget and returns its id (pol_...). It counts what its window already holds.
Exactly one scope: agent_id, user_id, tenant_id, each (agent, user or tenant: one limit for every one of them separately) or all_agents => true (one pool);
limits: {"max_tokens_cost_per_month": 5000}, at least one; keys max_tokens_cost_ or max_calls_ with per_hour, per_day, per_month (UTC) and max_tokens_cost_total, max_calls_total;
action: warn, throttle, block or revoke;
policy_id: pol_..., NULL makes one; replace: a policy of that id that is there gets this scope, action and exactly these limits; it keeps what a reset forgave of limits that stay, and whether it is enabled. A NOTICE says whether it was created, replaced or unchanged.
Errors: 22004, 22023, 22001, 22003 bad input; 23505 the id is taken; 42704 unknown agent.';

CREATE FUNCTION kavach.replace_policy(old kavach.budget_policy, new kavach.budget_policy, limits jsonb)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  changed boolean;
BEGIN
  UPDATE kavach.budget_policy p
     SET (scope, subject, each, action) = (SELECT new.scope, new.subject, new.each, new.action)
   WHERE p.policy_id = new.policy_id
     AND (old.scope, old.subject, old.each, old.action) IS DISTINCT FROM (new.scope, new.subject, new.each, new.action);
  changed := FOUND;
  DELETE FROM kavach.budget_limit l
   WHERE l.policy_id = new.policy_id
     AND NOT EXISTS (SELECT FROM kavach.limits(replace_policy.limits) c WHERE (c.measure, c.period) = (l.measure, l.period));
  changed := changed OR FOUND;
  -- what was forgiven was forgiven to somebody else
  DELETE FROM kavach.budget_baseline b
   WHERE b.policy_id = new.policy_id
     AND (old.scope, old.subject, old.each) IS DISTINCT FROM (new.scope, new.subject, new.each);
  RETURN changed;
END
$$;

COMMENT ON FUNCTION kavach.replace_policy(kavach.budget_policy, kavach.budget_policy, jsonb) IS
  'Gives a policy another scope and action, and takes the limits away that are not among these: true if something changed.';

CREATE FUNCTION kavach.merge_limits(policy_id text, limits jsonb)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  changed boolean;
BEGIN
  DELETE FROM kavach.budget_limit l
   USING kavach.limits(limits) c
   WHERE l.policy_id = merge_limits.policy_id
     AND (l.measure, l.period) = (c.measure, c.period) AND c.amount IS NULL;
  changed := FOUND;
  DELETE FROM kavach.budget_baseline b
   WHERE b.policy_id = merge_limits.policy_id
     AND NOT EXISTS (
        SELECT FROM kavach.budget_limit l
         WHERE (l.policy_id, l.measure, l.period) = (b.policy_id, b.measure, b.period));
  INSERT INTO kavach.budget_limit AS l (policy_id, measure, period, amount)
  SELECT merge_limits.policy_id, c.measure, c.period, c.amount
    FROM kavach.limits(limits) c
   WHERE c.amount IS NOT NULL
  ON CONFLICT ON CONSTRAINT budget_limit_pkey DO UPDATE
     SET amount = excluded.amount WHERE l.amount <> excluded.amount;
  changed := changed OR FOUND;
  IF NOT EXISTS (SELECT FROM kavach.budget_limit l WHERE l.policy_id = merge_limits.policy_id) THEN
    RAISE EXCEPTION 'a policy needs at least one limit'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give limits => ''{"max_tokens_cost_per_month": 5000}'', or drop the policy with kavach_drop_policy().';
  END IF;
  RETURN changed;
END
$$;

COMMENT ON FUNCTION kavach.merge_limits(text, jsonb) IS
  'Merges limits into those of a policy: true if something changed. Errors: those of kavach.limits, 22023 if none is left.';

CREATE FUNCTION @extschema@.kavach_update_policy(
  policy_id text,
  limits    jsonb DEFAULT NULL,
  action    text DEFAULT NULL,
  enabled   boolean DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  policy kavach.budget_policy := kavach.check_policy(policy_id);
  changed boolean := false;
BEGIN
  IF action IS NOT NULL THEN
    PERFORM kavach.check_action(action);
  END IF;
  IF limits IS NOT NULL THEN
    changed := kavach.merge_limits(policy_id, limits);
  END IF;
  UPDATE kavach.budget_policy p
     SET action = coalesce(kavach_update_policy.action, p.action),
         enabled = coalesce(kavach_update_policy.enabled, p.enabled)
   WHERE p.policy_id = policy.policy_id
     AND (p.action, p.enabled) IS DISTINCT FROM
         (coalesce(kavach_update_policy.action, p.action), coalesce(kavach_update_policy.enabled, p.enabled));
  RETURN changed OR FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_update_policy(text, jsonb, text, boolean) IS
'Changes a budget: true if something changed. Whatever is NULL stays.
limits: merged into the present ones, a JSON null removes one; action: warn, throttle, block or revoke; enabled: false lets everything pass.
Errors: 22004, 22023, 22001, 22003 bad input, or no limit would be left; 42704 unknown policy.';

CREATE FUNCTION @extschema@.kavach_drop_policy(policy_id text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_id(kavach_drop_policy.policy_id, 'policy_id');
  PERFORM FROM kavach.budget_policy p WHERE p.policy_id = kavach_drop_policy.policy_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  -- before the policy, by which it is known whom a limit is about
  DELETE FROM kavach.budget_limit l WHERE l.policy_id = kavach_drop_policy.policy_id;
  DELETE FROM kavach.budget_baseline b WHERE b.policy_id = kavach_drop_policy.policy_id;
  DELETE FROM kavach.budget_policy p WHERE p.policy_id = kavach_drop_policy.policy_id;
  RETURN true;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_drop_policy(text) IS
'Drops a budget with its limits: true if it was there. Usage is untouched.
Errors: 22004, 22023, 22001 bad input.';

CREATE FUNCTION @extschema@.kavach_reset_policy(policy_id text, subject text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  policy kavach.budget_policy := kavach.check_policy(policy_id);
BEGIN
  IF policy.each AND subject IS NULL THEN
    RAISE EXCEPTION 'policy "%" is one limit for each %: name the subject to reset', policy_id, policy.scope
      USING ERRCODE = 'invalid_parameter_value',
            HINT = format('Write kavach_reset_policy(%L, ''the %s''''s id'').', policy_id, policy.scope);
  END IF;
  IF NOT policy.each AND subject IS NOT NULL AND subject IS DISTINCT FROM policy.subject THEN
    RAISE EXCEPTION 'policy "%" has no subject "%"', policy_id, subject
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave subject out: only an each policy needs it.';
  END IF;
  PERFORM kavach.check_id(subject, coalesce(kavach.of_scope(policy.scope, NULL, 'user_id', NULL), 'subject'), required => false);
  IF policy.each AND NOT kavach.is_known(policy.scope, subject) THEN
    RAISE EXCEPTION '% "%" is not known', policy.scope, subject
      USING ERRCODE = 'undefined_object',
            DETAIL = coalesce(kavach.of_scope(policy.scope, 'There is none, and the ledger holds no usage of it.', NULL, NULL),
                              'No agent belongs to it, and the ledger holds no usage of it.'),
            HINT = 'kavach.budget_status lists who has used something, by policy.';
  END IF;

  INSERT INTO kavach.budget_baseline AS b (policy_id, measure, period, subject, period_start, usage)
  SELECT l.policy_id, l.measure, l.period, coalesce(policy.subject, kavach_reset_policy.subject),
         u.period_start, CASE l.measure WHEN 'tokens' THEN u.tokens ELSE u.calls END
    FROM kavach.budget_limit l,
         kavach.current_usage(policy.scope, coalesce(policy.subject, kavach_reset_policy.subject), l.period, committed => true) u
   WHERE l.policy_id = policy.policy_id
  ON CONFLICT ON CONSTRAINT budget_baseline_key DO UPDATE
     SET period_start = excluded.period_start, usage = excluded.usage
   WHERE (b.period_start, b.usage) IS DISTINCT FROM (excluded.period_start, excluded.usage);
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_reset_policy(text, text) IS
'Forgives what a budget''s current windows hold, so that it starts anew: true if something changed. Usage and bills are untouched, later windows too.
subject: which agent, user or tenant, required for an each policy.
Errors: 22004, 22023, 22001 bad input; 22003 overflow; 42704 unknown policy, or a subject that no agent has and of which the ledger has no usage.';

CREATE FUNCTION kavach.is_known(scope text, subject text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF EXISTS (SELECT FROM kavach.agent a WHERE kavach.of_scope(scope, a.agent_id, a.user_id, a.tenant_id) = subject) THEN
    RETURN true;
  END IF;
  RETURN (u.tokens, u.calls) <> (0, 0)
    FROM kavach.windows(kavach.clock_now()) w, kavach.current_usage(scope, subject, w.period, committed => false) u
   WHERE w.period_end IS NULL;
END
$$;

COMMENT ON FUNCTION kavach.is_known(text, text) IS
  'Whether an agent, user or tenant is one that kavach has heard of: by its agents, or else its usage.';

CREATE VIEW kavach.budget_status AS
WITH win AS (
  SELECT * FROM kavach.windows(kavach.clock_now())
), each AS MATERIALIZED (
  -- what each policies count; of agents' hours, closed batches may not have those any more that are old (src/ledger/tally.c)
  SELECT DISTINCT p.scope, w.*,
         kavach.of_scope(p.scope, '', NULL, NULL) = '' AND w.period_end - w.period_start < interval '1 day'
           AND w.period_start < statement_timestamp() - interval '1 day' AS old
    FROM kavach.budget_policy p JOIN kavach.budget_limit l USING (policy_id) JOIN win w USING (period)
   WHERE p.each
), tail AS MATERIALIZED (
  SELECT high, open FROM kavach.tail
   UNION ALL
  SELECT -1, '{}' WHERE NOT EXISTS (SELECT FROM kavach.tail)
), unclosed AS (
  -- with a bound above, so that the planner expects few
  SELECT a.* FROM tail t JOIN kavach.audit_log a ON a.batch > t.high AND a.batch <= 9223372036854775807
   UNION ALL
  SELECT a.* FROM tail t CROSS JOIN unnest(t.open) AS o (batch) JOIN kavach.audit_log a USING (batch)
), usage AS MATERIALIZED (
  -- what closed batches add up to, and the rows of the others; what is given back counts where it was charged
  SELECT n.scope, n.period, n.subject, sum(n.tokens) AS tokens, sum(n.calls) AS calls
    FROM (
      SELECT u.scope, u.period, u.subject, u.tokens, u.calls
        FROM each e JOIN kavach.usage_scope u ON (u.scope, u.period, u.start) = (e.scope, e.period, e.period_start)
       WHERE NOT e.old
       UNION ALL
      SELECT e.scope, e.period, x.subject, coalesce(a.tokens_cost, 0), (a.kind = 'authorize')::int
        FROM each e
        JOIN unclosed a ON a.ts >= e.period_start
       CROSS JOIN LATERAL kavach.charged_at(a.ts, a.tokens_cost, a.settles) AS charged_at
       CROSS JOIN LATERAL kavach.of_scope(e.scope, a.agent_id, a.user_id, a.tenant_id) AS x (subject)
       WHERE NOT e.old AND a.result = 'allowed' AND charged_at >= e.period_start AND charged_at < coalesce(e.period_end, 'infinity')
         AND x.subject IS NOT NULL
       UNION ALL
      SELECT e.scope, e.period, x.subject, coalesce(a.tokens_cost, 0), (a.kind = 'authorize')::int
        FROM each e
        JOIN kavach.audit_log a ON a.ts >= e.period_start
       CROSS JOIN LATERAL kavach.charged_at(a.ts, a.tokens_cost, a.settles) AS charged_at
       CROSS JOIN LATERAL kavach.of_scope(e.scope, a.agent_id, a.user_id, a.tenant_id) AS x (subject)
       WHERE e.old AND a.result = 'allowed' AND charged_at >= e.period_start AND charged_at < coalesce(e.period_end, 'infinity')
         AND x.subject IS NOT NULL) AS n
   GROUP BY n.scope, n.period, n.subject
)
SELECT p.policy_id, p.scope, s.subject, l.measure, l.period, w.period_start, w.period_end, l.amount,
       u.used, greatest(l.amount - u.used, 0) AS remaining, p.action,
       CASE WHEN NOT p.enabled THEN 'disabled' WHEN u.used >= l.amount THEN 'triggered' ELSE 'active' END AS status
  FROM kavach.budget_policy p
  JOIN kavach.budget_limit l USING (policy_id)
  JOIN win w USING (period)
 CROSS JOIN LATERAL (
    -- a named subject, or all: one row, used or not
    SELECT p.subject, (CASE l.measure WHEN 'tokens' THEN c.tokens ELSE c.calls END)::numeric AS usage
      FROM kavach.current_usage(p.scope, p.subject, l.period, committed => false) c
     WHERE NOT p.each
     UNION ALL
    -- each of them: a row for whoever used something in the window
    SELECT n.subject, CASE l.measure WHEN 'tokens' THEN n.tokens ELSE n.calls END
      FROM usage n
     WHERE p.each AND (n.scope, n.period) = (p.scope, l.period)) s
  LEFT JOIN LATERAL (
    -- two ways, as an index finds the one or the other
    SELECT n.usage FROM kavach.budget_baseline n
     WHERE (n.policy_id, n.measure, n.period, n.period_start) = (p.policy_id, l.measure, l.period, w.period_start)
       AND n.subject = s.subject
     UNION ALL
    SELECT n.usage FROM kavach.budget_baseline n
     WHERE (n.policy_id, n.measure, n.period, n.period_start) = (p.policy_id, l.measure, l.period, w.period_start)
       AND n.subject IS NULL AND s.subject IS NULL) b ON true
 CROSS JOIN LATERAL (
    SELECT CASE WHEN b.usage IS NULL THEN s.usage ELSE greatest(s.usage - b.usage, 0) END AS used) u
 WHERE NOT (p.each AND EXISTS (
    -- it yields to an enabled policy that names the subject
    SELECT FROM kavach.budget_policy n
      JOIN kavach.budget_limit nl USING (policy_id)
     WHERE n.enabled AND NOT n.each AND n.scope = p.scope AND n.subject = s.subject
       AND (nl.measure, nl.period) = (l.measure, l.period)
       AND (n.action = 'warn') = (p.action = 'warn')));

COMMENT ON VIEW kavach.budget_status IS 'How every limit stands: a row per policy, limit and subject; of an each policy, those with usage in the current window. A limit that yields to one that names its subject has no row.';
COMMENT ON COLUMN kavach.budget_status.policy_id IS 'The policy.';
COMMENT ON COLUMN kavach.budget_status.scope IS 'agent, user, tenant or all; of an each policy the kind of its subject.';
COMMENT ON COLUMN kavach.budget_status.subject IS 'The agent, user or tenant; NULL for all.';
COMMENT ON COLUMN kavach.budget_status.measure IS 'tokens or calls.';
COMMENT ON COLUMN kavach.budget_status.period IS 'hour, day, month or total.';
COMMENT ON COLUMN kavach.budget_status.period_start IS 'Start of the current window (UTC); -infinity for total.';
COMMENT ON COLUMN kavach.budget_status.period_end IS 'End of the current window, exclusive; NULL for total.';
COMMENT ON COLUMN kavach.budget_status.amount IS 'The limit.';
COMMENT ON COLUMN kavach.budget_status.used IS 'What counts against it: usage less what a reset forgave. Below 0 after refunds of earlier windows.';
COMMENT ON COLUMN kavach.budget_status.remaining IS 'What is left, never below 0.';
COMMENT ON COLUMN kavach.budget_status.action IS 'What happens when it would be passed.';
COMMENT ON COLUMN kavach.budget_status.status IS 'active, triggered (used >= amount) or disabled.';
