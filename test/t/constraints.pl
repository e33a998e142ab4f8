# constraints.pl: whatever a DBA has put on the ledger's tables, a call does what an INSERT would: it fails as that
# would where a constraint does not hold, and otherwise leaves a row as that would.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('constraints');
$node->init(allows_streaming => 'logical');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
my %has = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT name FROM pg_available_extensions');
my $decoded = $node->psql('postgres', q{SELECT pg_create_logical_replication_slot('rows', 'test_decoding')}) == 0;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	CREATE ROLE myapp LOGIN;
	SELECT kavach_grant_role('myapp', 'app');
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]'),
	       kavach_create_agent('agt_b', 'bob', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
	SELECT kavach_authorize('agt_a', 'run', 'x', 1)});
# One session for all: what it keeps of the ledger has to follow each change.
my $app = Session->new($node);
$app->query('SET ROLE myapp');
my $found = $app->query(q{SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 1)});
isnt($found, '', 'a call');

sub change { my ($sql) = @_; return $node->safe_psql('postgres', "SET kavach.allow_drop = on; SET kavach.allow_alter = on; $sql") }

sub call
{
	my ($arguments) = @_;
	return $app->query("SELECT audit_id FROM kavach_authorize($arguments)");
}

# A call that is to go through, and its row.
my $nrows = 2;
sub goes
{
	my ($name, $column, $expected, $arguments) = @_;
	my $id = call($arguments // q{'agt_a', 'run', 'x', 1});
	like($id, qr/^[0-9a-f-]{36}$/, "$name: a call") or return;
	$nrows++;
	return is($node->safe_psql('postgres', "SELECT $column FROM kavach.audit_log WHERE id = '$id'"), $expected, "$name: its row");
}

sub refused
{
	my ($name, $sqlstate, $arguments) = @_;
	like(call($arguments // q{'agt_a', 'run', 'x', 1}), qr/ERROR:  $sqlstate/, "$name: a call that does not fit");
	return is($node->safe_psql('postgres', 'SELECT count(*) FROM kavach.audit_log'), $nrows, "$name: and no row");
}

# ---- constraints ----

my $tagged = q{'agt_b', 'run', 'x', 1};
change('ALTER TABLE kavach.audit_log ADD FOREIGN KEY (agent_id) REFERENCES kavach.agent');
refused('foreign key', '23503', q{'agt_unknown', 'run', 'x', 1});
goes('foreign key', 'agent_id', 'agt_a');
change('ALTER TABLE kavach.audit_log DROP CONSTRAINT audit_log_agent_id_fkey');

change('ALTER TABLE kavach.audit_log ADD CHECK (tenant_id IS NOT NULL) NOT VALID');
refused('CHECK', '23514');
goes('CHECK', 'tenant_id', 'acme', $tagged);
my (undef, undef, $straight) = $node->psql('postgres', q{SELECT kavach_authorize('agt_a', 'run', 'x', 1)});
like($straight, qr/violates check constraint/, 'CHECK: the message');
unlike($straight, qr/CONTEXT/, 'CHECK: of a row that has gone straight in');
change('ALTER TABLE kavach.audit_log DROP CONSTRAINT audit_log_tenant_id_check');

change(q{
	CREATE TABLE kavach.audit_log_2027_03 (LIKE kavach.audit_log INCLUDING ALL, PRIMARY KEY (id));
	ALTER TABLE kavach.audit_log ATTACH PARTITION kavach.audit_log_2027_03 FOR VALUES FROM ('2027-03-01Z') TO ('2027-04-01Z');
	ALTER TABLE kavach.audit_log_2027_03 ALTER tenant_id SET NOT NULL});
$app->query('RESET ROLE');
$app->query("SET kavach.clock = '2027-03-10Z'; SET ROLE myapp");
refused('NOT NULL', '23502');
refused('NOT NULL, of an agent that does not exist', '23502', q{'agt_unknown', 'run', 'x', 5});
goes('NOT NULL', 'tenant_id', 'acme', $tagged);
my ($status, undef, $err) = $node->psql('postgres', q{SET kavach.clock = '2027-03-10Z'; SET ROLE myapp; SELECT kavach_authorize('agt_unknown', 'run', 'x', 5)});
like($err, qr/null value in column "tenant_id" of relation "audit_log_2027_03" violates not-null constraint/, 'NOT NULL: the message');
unlike($err, qr/DETAIL/, 'NOT NULL: and the row is not shown to who may not read it');
(undef, undef, $err) = $node->psql('postgres', q{SET kavach.clock = '2027-03-10Z'; SELECT kavach_authorize('agt_unknown', 'run', 'x', 5)});
like($err, qr/DETAIL:  Failing row contains/, 'NOT NULL: but to who may');
$app->query('RESET ROLE; RESET kavach.clock; SET ROLE myapp');

change('CREATE UNIQUE INDEX once ON kavach.audit_log_2026_03 (resource) WHERE resource LIKE \'once%\'');
goes('UNIQUE', 'resource', 'once', q{'agt_a', 'run', 'once', 1});
refused('UNIQUE', '23505', q{'agt_a', 'run', 'once', 1});
refused('UNIQUE, with a request_id', '23505', q{'agt_a', 'run', 'once', 1, request_id => 'never'});
goes('UNIQUE', 'resource', 'once more', q{'agt_a', 'run', 'once more', 1});
change('DROP INDEX kavach.once');

change('ALTER TABLE kavach.audit_log_2026_03 ADD CONSTRAINT late UNIQUE (metadata, ip, arguments) DEFERRABLE INITIALLY DEFERRED');
my $arguments = q{'agt_a', 'run', 'x', 1, '{"a": 1}', '10.0.0.1', metadata => '{"m": 1}'};
goes('UNIQUE DEFERRABLE', 'arguments', '{"a": 1}', $arguments);
like($app->query("BEGIN; SELECT code FROM kavach_authorize($arguments); SELECT 1"), qr/^allowed\n1$/, 'UNIQUE DEFERRABLE: a call goes through');
like($app->query('COMMIT'), qr/23505/, 'UNIQUE DEFERRABLE: and its transaction does not');
change('ALTER TABLE kavach.audit_log_2026_03 DROP CONSTRAINT late');

change('ALTER TABLE kavach.audit_log_2026_03 ADD CONSTRAINT apart EXCLUDE USING btree (request_id WITH =)');
goes('EXCLUDE', 'request_id', 'r-1', q{'agt_a', 'run', 'x', 1, request_id => 'r-1'});
refused('EXCLUDE', '23P01', q{'agt_b', 'run', 'x', 1, request_id => 'r-1'});
change('ALTER TABLE kavach.audit_log_2026_03 DROP CONSTRAINT apart');

change(q{
	CREATE DOMAIN told AS text;
	ALTER TABLE kavach.audit_log ADD COLUMN told told;
	ALTER DOMAIN told ADD CONSTRAINT told CHECK (VALUE IS NOT NULL) NOT VALID});
refused('domain', '23514');
change(q{
	ALTER TABLE kavach.audit_log DROP COLUMN told;
	ALTER DOMAIN told SET DEFAULT 'nothing';
	ALTER TABLE kavach.audit_log ADD COLUMN told told});
goes('domain with a default', 'told', 'nothing');
change('ALTER TABLE kavach.audit_log DROP COLUMN told');

# ---- functions of somebody else's in constraints ----

change(q{
	CREATE TABLE most (tokens bigint);
	INSERT INTO most VALUES (10);
	CREATE FUNCTION few(bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 10';
	CREATE FUNCTION fits(bigint) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT $1 < tokens FROM public.most';
	ALTER TABLE kavach.audit_log ADD CONSTRAINT few CHECK (public.few(tokens_cost))});
refused('a function', '23514', q{'agt_a', 'run', 'x', 10});
goes('a function', 'tokens_cost', '9', q{'agt_a', 'run', 'x', 9});
change(q{CREATE OR REPLACE FUNCTION few(bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 5'});
refused('a function that is replaced', '23514', q{'agt_a', 'run', 'x', 9});
goes('a function that is replaced', 'tokens_cost', '4', q{'agt_a', 'run', 'x', 4});
change(q{ALTER TABLE kavach.audit_log DROP CONSTRAINT few, ADD CONSTRAINT fits CHECK (public.fits(tokens_cost)) NOT VALID});
goes('a function that reads what the caller may not', 'tokens_cost', '9', q{'agt_a', 'run', 'x', 9});
refused('a function that reads what the caller may not', '23514', q{'agt_a', 'run', 'x', 10});
change(q{ALTER TABLE kavach.audit_log DROP CONSTRAINT fits, ADD CONSTRAINT mine CHECK (current_user = 'postgres') NOT VALID});
goes('who writes', 'tokens_cost', '1');
change(q{
	ALTER TABLE kavach.audit_log DROP CONSTRAINT mine;
	CREATE UNIQUE INDEX few ON kavach.audit_log_2026_03 (resource) WHERE resource LIKE 'few%' AND public.few(tokens_cost)});
goes('a predicate', 'tokens_cost', '5', q{'agt_a', 'run', 'few', 5});
goes('a predicate', 'tokens_cost', '5', q{'agt_a', 'run', 'few', 5});
refused('a predicate', '23505', q{'agt_a', 'run', 'few', 4}) if goes('a predicate', 'tokens_cost', '4', q{'agt_a', 'run', 'few', 4});
change('DROP INDEX kavach.few');

# ---- what an INSERT does besides ----

change(q{
	CREATE TABLE seen (what text, id uuid);
	CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.metadata = jsonb_build_object('by', TG_ARGV[0]); RETURN NEW; END $$;
	CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (TG_ARGV[0], NEW.id); RETURN NULL; END $$});
for my $table ('audit_log_2026_03', 'audit_log')
{
	change("CREATE TRIGGER mark BEFORE INSERT ON kavach.$table FOR EACH ROW EXECUTE FUNCTION mark('$table')");
	goes("BEFORE ROW on $table", "metadata ->> 'by'", $table);
	change("DROP TRIGGER mark ON kavach.$table; CREATE TRIGGER see AFTER INSERT ON kavach.$table FOR EACH ROW EXECUTE FUNCTION see('$table')");
	goes("AFTER ROW on $table", "(SELECT s.what FROM seen s WHERE s.id = audit_log.id)", $table);
	change("DROP TRIGGER see ON kavach.$table");
	next if $table ne 'audit_log';    # statements name the ledger, never its partition
	for my $when (qw(BEFORE AFTER))
	{
		change("CREATE TRIGGER see $when INSERT ON kavach.$table FOR EACH STATEMENT EXECUTE FUNCTION see('$when')");
		goes("$when STATEMENT on $table", "(SELECT count(*) FROM seen WHERE what = '$when')", '1');
		change("DROP TRIGGER see ON kavach.$table");
	}
}
change('CREATE TRIGGER never BEFORE INSERT ON kavach.audit_log_2026_03 FOR EACH ROW EXECUTE FUNCTION see(1)');
refused('a trigger that drops the row', '55000');
change(q{DROP TRIGGER never ON kavach.audit_log_2026_03; CREATE RULE never AS ON INSERT TO kavach.audit_log DO INSTEAD NOTHING});
refused('a rule that drops the row', '55000');
change(q{DROP RULE never ON kavach.audit_log; CREATE RULE also AS ON INSERT TO kavach.audit_log DO ALSO INSERT INTO public.seen VALUES ('rule', NEW.id)});
goes('a rule that does more', "(SELECT s.what FROM seen s WHERE s.id = audit_log.id)", 'rule');
change('DROP RULE also ON kavach.audit_log');
for my $table ('audit_log_2026_03', 'audit_log')
{
	change("ALTER TABLE kavach.$table ENABLE ROW LEVEL SECURITY");
	goes("row security on $table", 'tokens_cost', '1');
	change("ALTER TABLE kavach.$table DISABLE ROW LEVEL SECURITY");
}

change(q{
	CREATE TYPE shade;
	CREATE FUNCTION shade_in(cstring) RETURNS shade LANGUAGE internal IMMUTABLE STRICT AS 'textin';
	CREATE FUNCTION shade_out(shade) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
	CREATE TYPE shade (INPUT = shade_in, OUTPUT = shade_out, LIKE = text, DEFAULT = 'grey')});
my @columns = (
	[ 'a default', q{text DEFAULT 'new'}, 'new' ],
	[ 'a generated column', 'bigint GENERATED ALWAYS AS (tokens_cost * 2) STORED', '2' ],
	[ 'a type with a default', 'shade', 'grey' ]);
for (@columns)
{
	my ($name, $type, $expected) = @$_;
	change("ALTER TABLE kavach.audit_log ADD COLUMN more $type");
	goes($name, 'more', $expected);
	change('ALTER TABLE kavach.audit_log DROP COLUMN more');
}
change('ALTER TABLE kavach.audit_log ADD COLUMN more text');
change(q{ALTER TABLE ONLY kavach.audit_log ALTER more SET DEFAULT 'parent'});
goes(q{a default of the parent's alone}, 'more', 'parent');
change(q{ALTER TABLE ONLY kavach.audit_log ALTER more DROP DEFAULT; ALTER TABLE kavach.audit_log_2026_03 ALTER more SET DEFAULT 'child'});
goes(q{a default of the partition's alone, which no INSERT into the ledger uses}, 'more IS NULL', 't');
change('ALTER TABLE kavach.audit_log DROP COLUMN more');
change(q{
	CREATE SEQUENCE steps;
	ALTER TABLE kavach.audit_log ADD COLUMN step bigint NOT NULL DEFAULT 0;
	ALTER TABLE kavach.audit_log ALTER step DROP DEFAULT;
	ALTER TABLE kavach.audit_log ALTER step ADD GENERATED BY DEFAULT AS IDENTITY (START 7)});
goes('an identity', 'step', '7');
change('ALTER TABLE kavach.audit_log DROP COLUMN step');

# ---- other indexes ----

change(qq{
	CREATE INDEX i1 ON kavach.audit_log_2026_03 USING gin (metadata);
	CREATE INDEX i2 ON kavach.audit_log_2026_03 USING hash (resource);
	CREATE INDEX i3 ON kavach.audit_log_2026_03 USING brin (ts);
	CREATE INDEX i4 ON kavach.audit_log_2026_03 (lower(resource)) INCLUDE (code)});
goes('other indexes', 'resource', 'X', q{'agt_a', 'run', 'X', 1, metadata => '{"k": "v"}'});
is($node->safe_psql('postgres', q{SET enable_seqscan = off; SELECT count(*) FROM kavach.audit_log_2026_03 WHERE metadata @> '{"k": "v"}'}), '1', 'is in that of JSON');
change('DROP INDEX kavach.i1, kavach.i2, kavach.i3, kavach.i4');

# ---- and what came of it ----

SKIP:
{
	skip 'there is no amcheck', 1 unless $has{amcheck};
	change('CREATE EXTENSION amcheck');
	is($node->safe_psql('postgres', q{
		SELECT count(bt_index_check(i.indexrelid, true)) > 5
		  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
		 WHERE a.amname = 'btree' AND i.indrelid IN (SELECT relid FROM pg_partition_tree('kavach.audit_log'))}), 't', 'indexes have all rows, and no others');
}
SKIP:
{
	skip 'there is no test_decoding', 1 unless $decoded;
	is($node->safe_psql('postgres', q{
		WITH change AS (SELECT substring(data FROM $$^table kavach\.audit_log\w*: INSERT: id\[uuid\]:'([^']+)'$$)::uuid AS id
		                  FROM pg_logical_slot_get_changes('rows', NULL, NULL))
		SELECT count(*) > 30, count(*) FILTER (WHERE l.id IS NULL OR change.id IS NULL)
		  FROM (SELECT id FROM change WHERE id IS NOT NULL) AS change FULL JOIN kavach.audit_log l USING (id)}), 't|0', 'decoded are the rows of the ledger');
}
$app->quit;
$node->stop;
done_testing();
