/*
 * preload.c
 *		Lets the sanitizers' libraries live in a server that was compiled without
 *		them: preloaded after libasan, and with -z initfirst set up before all else.
 */
#include <stdlib.h>

/*
 * libasan sets itself up when malloc is first called.  If that is within
 * gettext, as in the start of libgpg-error, it deadlocks.
 */
static __attribute__((constructor)) void
set_up_libasan(void)
{
	free(malloc(1));
}

/*
 * libubsan reads its options when it has something to report; by then the
 * environment that it looks at has become the title of the process.
 */
const char *
__ubsan_default_options(void)
{
	return getenv("UBSAN_OPTIONS");
}
