# schema.pl: the schema that the functions are in may have any name, be renamed, and be schema kavach itself; a dump
# of that is restored.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('schema');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE somebody LOGIN; CREATE ROLE boss SUPERUSER LOGIN');
mkdir $node->backup_dir;

sub outcome
{
	my ($database, $sql) = @_;
	my ($status, $out, $err) = $node->psql($database, $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ], on_error_stop => 1);
	return $status == 0 ? $out : $err;
}

# Every function is called, in a new session, by a role of each kind, whatever the schema is called.
sub works
{
	my ($database, $schema, $n, $what) = @_;
	is(outcome($database, qq{SET search_path = pg_catalog; SET client_min_messages = error;
		SELECT $schema.kavach_create_agent('agt_$n', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
		SELECT count(*) FROM kavach.permission WHERE agent_id = 'agt_$n'}), "agt_$n\n1", "$what: an agent with permissions");
	is(outcome($database, qq{CREATE ROLE ${database}_${n}_$_}) . outcome($database, qq{SELECT $schema.kavach_grant_role('${database}_${n}_$_', '$_')}), 't', "$what: the right of $_ is granted") for qw(app reader admin);
	is(outcome($database, qq{SET ROLE ${database}_${n}_app; SELECT code FROM $schema.kavach_authorize('agt_$n', 'run', 'x', 5, request_id => 'r')}), 'allowed', "$what: app can call");
	is(outcome($database, qq{SET ROLE ${database}_${n}_app; SELECT tokens_charged FROM $schema.kavach_record_usage('agt_$n', 7, request_id => 'r')}), '2', "$what: and settle");
	like(outcome($database, qq{SET ROLE ${database}_${n}_app; SELECT count(*) FROM kavach.ledger}), qr/42501/, "$what: and reads nothing");
	is(outcome($database, qq{SET ROLE ${database}_${n}_reader; SELECT sum(tokens_cost) FROM $schema.kavach_query_audit('agt_$n'); SELECT count(*) FROM $schema.kavach_export_json(), kavach.budget_status LIMIT 1;
		SELECT tokens_cost FROM $schema.kavach_billing_report(2026, 3)}) =~ s/\n.*\n/ /sr, '7 ' . 7 * ($n + 1), "$what: reader can read");
	is(outcome($database, qq{SET ROLE ${database}_${n}_admin; SELECT $schema.kavach_revoke_permission($schema.kavach_grant_permission('agt_$n', 'y:*', '{run}'));
		SELECT $schema.kavach_reset_policy(p) FROM $schema.kavach_create_policy(agent_id => 'agt_$n', limits => '{"max_tokens_cost_total": 10}') AS p; SELECT $schema.kavach_revoke_agent('agt_$n')}), "t\nt\nt", "$what: admin can change");
}

# dump NAME: into databases NAME_one and NAME_jobs
sub restored
{
	my ($database) = @_;
	my $dump = $node->backup_dir . "/$database.dump";
	my %jobs = (one => 1, jobs => 3);
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $database ], "$database is dumped");
	foreach my $copy (sort keys %jobs)
	{
		$node->safe_psql('postgres', "CREATE DATABASE ${database}_$copy");
		$node->command_ok([ 'pg_restore', '--exit-on-error', '-j', $jobs{$copy}, '-d', "${database}_$copy", $dump ], "and restored, jobs: $jobs{$copy}");
		is($node->safe_psql("${database}_$copy", $_), $node->safe_psql($database, $_), $_)
		  foreach 'SELECT * FROM kavach.audit_log ORDER BY id', 'SELECT * FROM kavach.permission ORDER BY 1', q{SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'kavach'},
			'SELECT nspname, nspacl FROM pg_namespace WHERE nspname IN (SELECT extnamespace::regnamespace::text FROM pg_extension UNION SELECT $$kavach$$) ORDER BY 1';
	}
}

# Renamed, and renamed again.
$node->safe_psql('postgres', 'CREATE DATABASE renamed');
$node->safe_psql('renamed', 'CREATE SCHEMA "Of the app"; CREATE EXTENSION kavach SCHEMA "Of the app"');
works('renamed', '"Of the app"', 0, 'as created');
$node->safe_psql('renamed', 'ALTER SCHEMA "Of the app" RENAME TO api');
works('renamed', 'api', 1, 'renamed');
restored('renamed');
$node->safe_psql('renamed_jobs', 'ALTER SCHEMA api RENAME TO "API"');
works('renamed_jobs', '"API"', 2, 'renamed after a restore');
like(outcome('renamed', 'ALTER SCHEMA kavach RENAME TO other'), qr/42501: cannot alter schema kavach/, 'schema kavach keeps its name');

# All in one schema.
$node->safe_psql('postgres', 'CREATE DATABASE together');
like(outcome('together', 'CREATE EXTENSION kavach SCHEMA kavach'), qr/3F000: schema "kavach" does not exist/, 'it has to be there');
$node->safe_psql('together', 'CREATE SCHEMA kavach AUTHORIZATION somebody');
like(outcome('together', 'CREATE EXTENSION kavach SCHEMA kavach'), qr/42501: schema "kavach" must be owned by a superuser.*HINT: +ALTER SCHEMA kavach OWNER/s, 'and owned by a superuser');
like(outcome('together', 'CREATE EXTENSION kavach SCHEMA public'), qr/42P06: schema "kavach" already exists.*HINT: .*CREATE EXTENSION kavach SCHEMA kavach/s, 'a schema of that name is not taken over');
$node->safe_psql('together', 'DROP SCHEMA kavach; SET ROLE boss; CREATE SCHEMA kavach; GRANT CREATE ON SCHEMA kavach TO somebody; CREATE EXTENSION kavach SCHEMA kavach');
like(outcome('together', 'SET ROLE somebody; CREATE TABLE kavach.mine (a int)'), qr/42501/, 'nobody else can create anything in it then');
works('together', 'kavach', 0, 'in schema kavach');
like(outcome('together', 'ALTER SCHEMA kavach RENAME TO other'), qr/42501: cannot alter schema kavach/, 'which keeps its name, too');
like(outcome('together', 'DROP SCHEMA kavach CASCADE'), qr/42501: the ledger holds rows/, 'and stays');
restored('together');
works('together_one', 'kavach', 1, 'in schema kavach, restored');
is(outcome('together', q{SET client_min_messages = error; SET kavach.allow_drop = on; DROP EXTENSION kavach CASCADE; SELECT count(*) FROM pg_class WHERE relnamespace = 'kavach'::regnamespace; CREATE EXTENSION kavach SCHEMA kavach}), '0', 'and is empty after DROP EXTENSION');
$node->stop;
done_testing();
