# others.pl: what is not the ledger's is none of kavach's business: on a server that preloads it, in a database
# without kavach and in one that has it, tables, partitions and triggers of others come and go unseen.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('others');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(without beside);
$node->safe_psql('beside', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
	SELECT kavach_authorize('agt_a', 'run', 'x', 5);
});

sub state_of
{
	my ($database, $sql) = @_;
	my ($status, undef, $err) = $node->psql($database, $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ], on_error_stop => 1);
	return $status == 0 ? '' : $err =~ /(?:ERROR|FATAL): +([0-9A-Z]{5}):/ ? $1 : "unknown: $err";
}

foreach my $database (qw(without beside))
{
	$node->safe_psql($database, q{
		CREATE FOREIGN DATA WRAPPER nothing;
		CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
		CREATE TABLE m (a int, b text) PARTITION BY LIST (a);
		CREATE TABLE m1 PARTITION OF m FOR VALUES IN (1);
		CREATE TABLE m2 PARTITION OF m FOR VALUES IN (2) PARTITION BY LIST (b);
		CREATE TABLE m2x PARTITION OF m2 FOR VALUES IN ('x');
		CREATE TABLE one (a int PRIMARY KEY);
		CREATE TABLE two () INHERITS (one);
		INSERT INTO m VALUES (1, 'x'), (2, 'x');
		CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER append_only BEFORE DELETE ON m FOR EACH ROW EXECUTE FUNCTION refuse_change();
	});
	is(state_of($database, $_), '', "$database: $_")
	  foreach (
		'CREATE FOREIGN TABLE m3 PARTITION OF m FOR VALUES IN (3) SERVER nowhere',
		'CREATE FOREIGN TABLE m2y PARTITION OF m2 FOR VALUES IN (NULL) SERVER nowhere',
		'CREATE FOREIGN TABLE f (a int, b text) SERVER nowhere; ALTER TABLE m ATTACH PARTITION f FOR VALUES IN (4)',
		'ALTER TABLE m DETACH PARTITION m3',
		'DROP FOREIGN TABLE m3, f',
		'ALTER TABLE m DETACH PARTITION m1',
		'ALTER TABLE m DETACH PARTITION m2');
	is($node->safe_psql($database, q{SELECT sum(pg_stat_get_numscans(c)) FROM unnest('{m1,m2,m2x}'::regclass[]) AS c}), '0', "$database: which no DETACH has looked into");
	is(state_of($database, $_), '', "$database: $_")
	  foreach (
		'ALTER TABLE m ATTACH PARTITION m1 FOR VALUES IN (1)',
		'ALTER TABLE m DETACH PARTITION m1 CONCURRENTLY',
		'ALTER TABLE two NO INHERIT one',
		'ALTER TABLE one DROP CONSTRAINT one_pkey',
		'TRUNCATE m1',
		'DROP TRIGGER append_only ON m',
		'DROP TABLE m2x',
		'DROP TABLE m, m1, m2, one, two',
		'CREATE EXTENSION IF NOT EXISTS plpgsql; DROP SERVER nowhere CASCADE');
}

# Nor is a table of others' that is kept in schema kavach.
is(state_of('beside', "CREATE TABLE kavach.own (a int); ALTER TABLE kavach.own $_ TRIGGER ALL; DROP TABLE kavach.own"), '', "a table of others' in schema kavach: $_ TRIGGER ALL") for qw(DISABLE ENABLE);

# A foreign table as a month of the ledger is the ledger's, and its rows are not for us to count.
is(state_of('beside', q{CREATE SERVER archive FOREIGN DATA WRAPPER nothing;
	CREATE FOREIGN TABLE kavach.old PARTITION OF kavach.audit_log FOR VALUES FROM ('2020-01-01Z') TO ('2020-02-01Z') SERVER archive}), '', 'a foreign month of the ledger comes');
is(state_of('beside', $_), '42501', $_) foreach 'ALTER TABLE kavach.audit_log DETACH PARTITION kavach.old', 'DROP FOREIGN TABLE kavach.old', 'DROP SERVER archive CASCADE';
is(state_of('beside', 'SET kavach.allow_drop = on; ALTER TABLE kavach.audit_log DETACH PARTITION kavach.old; DROP FOREIGN TABLE kavach.old'), '', 'and goes, where that is allowed');
$node->stop;
done_testing();
