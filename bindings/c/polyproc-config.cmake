# find_package(polyproc) gives the target polyproc::polyproc. The engine (libpolyproc-engine.so) lies beside the library,
# which loads it when it is needed: nothing links against it.
get_filename_component(polyproc_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET polyproc::polyproc)
	add_library(polyproc::polyproc SHARED IMPORTED)
	set_target_properties(polyproc::polyproc PROPERTIES
		IMPORTED_LOCATION "${polyproc_prefix}/lib/libpolyproc.so"
		IMPORTED_SONAME libpolyproc.so
		INTERFACE_INCLUDE_DIRECTORIES "${polyproc_prefix}/include")
endif()

unset(polyproc_prefix)
