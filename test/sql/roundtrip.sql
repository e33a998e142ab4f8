-- roundtrip.sql: what agents write into the ledger survives CSV and JSON lines, under any setting.
SET timezone = 'UTC';
SET client_min_messages = error;
SET kavach.clock = '2026-06-10 09:00:00.123456+00';
SELECT kavach_create_agent('agt_"csv", \', E'o''neil,\n"x"', 'zürich ☂', permissions => '[{"resource": "**", "actions": ["*"]}]') AS a \gset
-- Each string as resource, argument, metadata, request_id and reason.
SELECT count((kavach_authorize(:'a', s, s, 5, jsonb_build_object('arg', s, s, ARRAY[s]), '2001:db8::1', s, jsonb_build_object('m', s))).audit_id),
       count((kavach_record_usage(:'a', 3, request_id => s, metadata => jsonb_build_object('m', s))).usage_id),
       count(kavach_adjust(:'a', 1, s))
  FROM unnest(ARRAY['a,b', 'say "hi"', '""', E'two\nlines', E'cr\r\nlf', E'tab\there', '\', '\\', '\n', '\.', E'x\n\\.\ny', E'\b\f\x1f',
                    ' padded ', 'NULL', '\N', 'größe, "ü"', '日本語', '🙂 "😀"', '''; DROP TABLE x; --', '=1+1', E'\x01\x02', 'null', '{}', '%s']) AS s;
SELECT code FROM kavach_authorize('agt_unknown', 'run', E'un"known\n');
SELECT code FROM kavach_authorize(:'a', 'run', 'x');

CREATE TABLE plain AS SELECT * FROM kavach.ledger LIMIT 0;
CREATE VIEW months AS SELECT * FROM kavach.audit_log WHERE ts >= '2026-06-01Z' AND ts < '2026-07-01Z';
CREATE VIEW difference AS
  (SELECT 'lost', m::text FROM (SELECT * FROM months EXCEPT ALL SELECT * FROM plain) AS m)
  UNION ALL (SELECT 'made', p::text FROM (SELECT * FROM plain EXCEPT ALL SELECT * FROM months) AS p);

-- The server reads the files back: psql 15's \copy takes a line of a quoted value that is just \. for the end of its file.
\getenv folder PG_ABS_BUILDDIR
\set csv_1 :folder /results/roundtrip_1.csv
\set csv_2 :folder /results/roundtrip_2.csv
\set jsonl_1 :folder /results/roundtrip_1.jsonl

-- CSV
\copy (SELECT * FROM kavach_export('2026-06-01Z', '2026-07-01Z')) TO 'results/roundtrip_1.csv' (FORMAT csv, HEADER)
SET timezone = 'Asia/Kathmandu';
SET datestyle = 'German, DMY';
\copy (SELECT * FROM kavach_export('2026-06-01Z', '2026-07-01Z')) TO 'results/roundtrip_2.csv' (FORMAT csv, HEADER)
\! cmp results/roundtrip_1.csv results/roundtrip_2.csv && echo the same bytes
COPY plain FROM :'csv_1' (FORMAT csv, HEADER match);
SELECT count(*) FROM plain;
SELECT * FROM difference;
TRUNCATE plain;
SET datestyle = 'ISO, MDY';
SET timezone = 'UTC';
COPY plain FROM :'csv_2' (FORMAT csv, HEADER match);
SELECT * FROM difference;
SELECT sum(tokens_cost) AS by_hand, (SELECT sum(tokens_cost) FROM kavach_billing_report(2026, 6)) AS billed FROM plain;
TRUNCATE plain;

-- JSON lines
\copy (SELECT kavach_export_json('2026-06-01Z', '2026-07-01Z')) TO 'results/roundtrip_1.jsonl' (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
SET timezone = 'Asia/Kathmandu';
SET datestyle = 'German, DMY';
\copy (SELECT kavach_export_json('2026-06-01Z', '2026-07-01Z')) TO 'results/roundtrip_2.jsonl' (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
\! cmp results/roundtrip_1.jsonl results/roundtrip_2.jsonl && echo the same bytes
CREATE TABLE line (j text);
COPY line FROM :'jsonl_1' (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02');
SELECT count(*), count(j::jsonb) FROM line;
INSERT INTO plain SELECT r.* FROM line, jsonb_populate_record(NULL::plain, j::jsonb) AS r;
SELECT * FROM difference;
SET datestyle = 'ISO, MDY';
\! perl -MJSON::PP -ne 'JSON::PP->new->utf8->decode($_)->{id} =~ /^[0-9a-f-]{36}$/ or die "not an object: $_"; $n++; END { print "$n objects, one a line\n" }' results/roundtrip_1.jsonl

DROP VIEW difference, months;
DROP TABLE plain, line;
