-- export.sql
--   The ledger for other systems, through COPY (SELECT ...) TO ....
--   Inlined as the reports are: rows stream, whatever their number.

CREATE FUNCTION @extschema@.kavach_export(
  since timestamptz DEFAULT NULL,
  until timestamptz DEFAULT NULL)
RETURNS TABLE (
  id uuid, ts text, batch bigint, kind text, agent_id text, user_id text, tenant_id text,
  action text, resource text, arguments jsonb, ip inet, result text, code text, reason text,
  permission_id bigint, policy_id text, tokens_requested bigint, min_tokens bigint, tokens_released bigint,
  tokens_cost bigint, settles uuid, request_id text, provider text, model text,
  tokens_input bigint, tokens_output bigint, tokens_cache_read bigint, tokens_cache_write bigint,
  cost numeric, metadata jsonb)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.id, to_char(l.ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), l.batch, l.kind,
         l.agent_id, l.user_id, l.tenant_id, l.action, l.resource, l.arguments, l.ip, l.result, l.code, l.reason,
         l.permission_id, l.policy_id, l.tokens_requested, l.min_tokens, l.tokens_released,
         l.tokens_cost, l.settles, l.request_id, l.provider, l.model,
         l.tokens_input, l.tokens_output, l.tokens_cache_read, l.tokens_cache_write,
         l.cost, l.metadata
    FROM (SELECT n.*
            FROM kavach.no_rows(kavach.kept_since(kavach.range_start(kavach_export.since, kavach_export.until), kavach_export.until),
                                NULL::kavach.ledger) n
           UNION ALL
          SELECT * FROM kavach.ledger) l
   WHERE l.ts >= kavach.range_start(kavach_export.since, kavach_export.until)
     AND l.ts >= kavach.kept_since(kavach_export.since, kavach_export.until)
     AND l.ts < coalesce(kavach_export.until, 'infinity');
END;

COMMENT ON FUNCTION @extschema@.kavach_export(timestamptz, timestamptz) IS
'The ledger''s rows from since (inclusive) to until (exclusive) for COPY (SELECT * FROM kavach_export(...)) TO ... (FORMAT csv, HEADER); NULL for no bound.
The columns are those of kavach.audit_log; ts is ISO 8601 UTC text whatever TimeZone and DateStyle. Rows come in no particular order: add ORDER BY id where it matters. Without since: from the end of the last month on that was dropped.
Errors: 22023 where since is after until; KV005 in a month that was dropped.';

CREATE FUNCTION @extschema@.kavach_export_json(
  since timestamptz DEFAULT NULL,
  until timestamptz DEFAULT NULL)
RETURNS SETOF jsonb
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT to_jsonb(e) FROM @extschema@.kavach_export(kavach_export_json.since, kavach_export_json.until) e;
END;

COMMENT ON FUNCTION @extschema@.kavach_export_json(timestamptz, timestamptz) IS
'As kavach_export, one JSON object a row. COPY''s text format doubles backslashes; what keeps JSON lines whole is
COPY (SELECT * FROM kavach_export_json(...)) TO ... (FORMAT csv, QUOTE E''\x01'', DELIMITER E''\x02''), as JSON has neither of the two.
Errors: 22023 where since is after until; KV005 in a month that was dropped.';
